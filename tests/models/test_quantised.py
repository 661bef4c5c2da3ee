"""A base in 8 or 4 bits: what is refused, what is quantised; nothing quantised is saved."""

from __future__ import annotations

import importlib.util
import json

import pytest
import report_samples
import torch
import yaml
from conftest import tiny_processor, tiny_vit

from kswap.cli import main
from kswap.config import SwapConfig
from kswap.errors import UserError
from kswap.models import quantised
from kswap.models.adapter import adapter_changes, adapter_groups, attach, read_matrices
from kswap.models.fused import fused_adapters
from kswap.models.head import find_heads
from kswap.models.loading import load_base
from kswap.models.structure import find_ffn_blocks
from kswap.report.card import card
from kswap.settings import AdapterConfig, TrainingConfig

CPU = torch.device("cpu")


def pretend(monkeypatch, *, installed):
    real = importlib.util.find_spec

    def find_spec(name, *rest):
        return (object() if installed else None) if name == "bitsandbytes" else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


@pytest.mark.parametrize(
    ("installed", "device", "in_memory", "named"),
    [
        (False, "auto", False, r"pip install 'kswap\[quantise\]'"),
        (False, "cpu", False, r"pip install 'kswap\[quantise\]'"),
        (True, "auto", False, "meant for a GPU"),
        (True, "cpu", True, "passed in memory"),
    ],
)
def test_what_cannot_be_is_one_line(monkeypatch, installed, device, in_memory, named):
    pretend(monkeypatch, installed=installed)
    training = TrainingConfig(base_weights="4bit", device=device)
    with pytest.raises(UserError, match=named) as error:
        quantised.check_base_weights(training, CPU, in_memory=in_memory)
    assert "4bit" in str(error.value)
    assert "\n" not in str(error.value)
    quantised.check_base_weights(TrainingConfig(), CPU, in_memory=True)


@pytest.mark.parametrize("installed", [False, True])
def test_a_run_that_cannot_have_it_ends_with_2_and_leaves_no_model(
    installed, monkeypatch, values, tmp_path, capsys
):
    pretend(monkeypatch, installed=installed)
    values["training"]["device"] = "auto"
    if torch.cuda.is_available() and installed:
        pytest.skip("here is a GPU")
    path = tmp_path / "swap.yaml"
    path.write_text(yaml.safe_dump(values))
    assert main(["run", str(path), "--training.base_weights", "8bit"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "8bit" in line
    assert "take fp32" in line
    assert not (tmp_path / "run/config.yaml").exists()


def test_an_unknown_width_is_refused(values):
    values["training"]["base_weights"] = "2bit"
    with pytest.raises(UserError, match=r"training.base_weights: '2bit'"):
        SwapConfig.from_mapping(values)


def test_the_card_says_which_weights_were_scored(tmp_path):
    run_dir = report_samples.write_run(tmp_path / "run", "classification", analysis=False)
    results = json.loads((run_dir / "results.json").read_text())
    assert "full precision" not in card(results)
    results["base"]["weights"] = "4bit"
    results["saved"] = {"weights": "fp32", "scores": {"learn": 0.5, "forget": 0.0, "retain": 0.25}}
    text = card(results)
    assert "on a base held in 4bit" in text
    assert "learn 50.0, forget 0.0, retain 25.0" in text
    assert "value: 0.25" in text  # the index is of what is saved


@pytest.fixture
def wide_dir(tmp_path):
    """A tiny classifier whose rows fill bitsandbytes' blocks of 64."""
    from transformers import ViTForImageClassification

    config = tiny_vit().config
    config.hidden_size, config.intermediate_size = 64, 128
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(tmp_path / "wide")
    tiny_processor().save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_blocks_are_quantised_found_adapted_and_not_fused(bits, wide_dir):
    pytest.importorskip("bitsandbytes")
    loaded = load_base(str(wide_dir))
    blocks, heads = find_ffn_blocks(loaded.model), find_heads(loaded.model)
    model = quantised.load_quantised(loaded, bits, blocks=blocks, device=CPU)
    assert find_ffn_blocks(model) == blocks
    assert find_heads(model) == heads
    names = quantised.quantised_linears(model)
    assert len(names) == 2 * 6  # of each block: queries, keys, values, output, two feed-forward
    assert set(heads).isdisjoint(names)
    held = {type(p).__name__ for p in loaded.model.parameters()}
    assert held == {"Parameter"}  # the full one is as it was
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        near, exact = model(pixels).logits, loaded.model(pixels).logits
    assert 0 < float((near - exact).abs().max()) < 0.3 * float(exact.abs().max())
    swapped = attach(model, blocks, AdapterConfig(), head_names=heads, seed=0)
    assert torch.equal(swapped(pixels).logits, near)  # B is 0
    groups = adapter_groups(swapped, blocks)
    assert [len(matrices) for matrices in groups.values()] == [4, 4]
    with fused_adapters(swapped):
        assert not any("forward" in vars(module) for module in swapped.modules())
        swapped(pixels).logits.sum().backward()
    trained = {name for name, p in swapped.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    with torch.no_grad():
        for down, up, *_ in groups.values():
            up.fill_(0.01)
            assert down.dtype == up.dtype == torch.float32
    relative = [share for pairs in adapter_changes(swapped, blocks).values() for _, share in pairs]
    assert all(0 <= share < 10 for share in relative)
    assert any(relative)


def test_4_bits_on_a_processor_train_after_a_forward_pass_without_gradients(wide_dir, monkeypatch):
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    if not hasattr(modules, "has_avx512bf16"):
        pytest.skip("this bitsandbytes never repacks")
    # as on a processor that has AVX512-BF16, which repacks at the first such pass
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    loaded = load_base(str(wide_dir))
    blocks, heads = find_ffn_blocks(loaded.model), find_heads(loaded.model)
    model = quantised.load_quantised(loaded, "4bit", blocks=blocks, device=CPU)
    linears = [model.get_submodule(name) for name in quantised.quantised_linears(model)]
    before = [linear.weight.data.clone() for linear in linears]
    swapped = attach(model, blocks, AdapterConfig(), head_names=heads, seed=0).eval()
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scored = swapped(pixels).logits
    assert all(
        torch.equal(linear.weight.data, weight)
        for linear, weight in zip(linears, before, strict=True)
    )
    answers = swapped(pixels).logits
    assert torch.equal(answers, scored)
    answers.sum().backward()
    grads = [p.grad for name, p in swapped.named_parameters() if "lora_B" in name]
    assert grads
    assert all(grad is not None and grad.any() for grad in grads)


def test_linears_that_know_no_repacking_are_left_alone():
    linear = torch.nn.Linear(2, 2)
    quantised.keep_differentiable(linear)
    assert not hasattr(linear, "support_avx512bf16_for_cpu")


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_run_saves_its_adapter_on_the_full_base(
    bits, wide_dir, values, tmp_path, capsys
):
    pytest.importorskip("bitsandbytes")
    values["model"] = str(wide_dir)
    for stage in values["stages"].values():
        stage["depth"] = "last-1"
    path = tmp_path / "swap.yaml"
    path.write_text(yaml.safe_dump(values))
    assert main(["run", str(path), "--training.base_weights", bits, "--order", "LF"]) == 0
    said = capsys.readouterr().err
    assert f"the base is held in {bits} while it trains (12 linears)" in said
    assert "is not kept" not in said
    run_dir = tmp_path / "run"
    results = json.loads((run_dir / "results.json").read_text())
    assert results["base"]["weights"] == bits
    assert results["seconds"]["prefix"] > 0
    note = results["notes"][-1]  # behind those on the data
    assert f"a base held in {bits}" in note
    assert "a base held in" in (run_dir / "report.html").read_text()
    assert "quantization_config" not in json.loads((run_dir / "model/config.json").read_text())
    base = load_base(str(wide_dir)).model.state_dict()
    saved = load_base(str(run_dir / "model")).model.state_dict()
    adapter = read_matrices(run_dir / "adapter")
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    scale = json.loads((run_dir / "adapter/adapter_config.json").read_text())
    scale = scale["lora_alpha"] / scale["r"]
    moved = 0
    for name, weight in base.items():
        if name.startswith("classifier"):
            continue
        start = f"{name.removesuffix('.weight')}.lora_"
        if f"{start}A.weight" in adapter:
            change = scale * adapter[f"{start}B.weight"] @ adapter[f"{start}A.weight"]
            moved += bool(change.any())
            assert torch.allclose(saved[name], weight + change, atol=1e-6)
        else:
            assert torch.equal(saved[name], weight), name
    assert moved == 2  # the last block's linears
    assert len(adapter) == 8
    assert main(["evaluate", str(run_dir)]) == 0
    said = capsys.readouterr()
    assert f"in full precision; the run's stages were scored in {bits}" in said.err
    assert "NOT equal" not in said.out
    assert main(["audit", str(run_dir)]) == 0
    capsys.readouterr()
    warnings = json.loads((run_dir / "results.json").read_text())["audit"]["warnings"]
    assert any(f"on a base held in {bits}" in warning for warning in warnings)

"""Every segmenter and detector: blocks, heads, adapter, and what is read back without kswap."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from criteria_labels import INPUTS, boxes, library_loss, masks
from criteria_models import SIDE
from models.families import LABELS
from models.scene_expected import EXPECTED_CLASS_ROWS, EXPECTED_PARTS
from models.scene_families import SCENES, picture, scene_model, scene_processor
from scene_examples import FORGET, LEARN, RETAIN, TERMS, examples, view_of
from transformers import pipeline

from kswap.models.adapter import adapter_groups, attach, check_moved, snapshot
from kswap.models.artefact import save_adapter, save_merged, save_model
from kswap.models.class_tensors import class_tensors
from kswap.models.head import extend_head, find_heads
from kswap.models.loading import Loaded, from_objects, load_base, quiet
from kswap.models.structure import FfnBlock, find_ffn_blocks
from kswap.settings import ROLES, AdapterConfig
from kswap.tasks import find
from kswap.tasks.criteria import decompose, outputs_only
from kswap.tasks.queries import loss_kind
from kswap.training.loop import compute_terms

# PEFT asks transformers for a deprecated property when it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
NEW = {**LABELS, 5: "horse", 6: "ship"}
ROLES_OF_ROWS = [RETAIN, RETAIN, RETAIN, FORGET, RETAIN, LEARN, LEARN]
NOTES = {"forgotten": ["tree"], "learned": ["horse", "ship"], "version": "0"}
TWICE = ("detr-auxiliary", "table-transformer", "eomt-dinov3", "data2vec", "deimv2")
"""Built as another family is; their adapters are tested with the slow tests."""
families = pytest.mark.parametrize("family", SCENES)
saved_families = pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[pytest.mark.slow] if f in TWICE else []) for f in SCENES]
)


@functools.cache
def _built(family: str) -> tuple[Loaded, tuple[FfnBlock, ...], tuple[str, ...]]:
    model = scene_model(family)
    with quiet():
        loaded = from_objects(model, scene_processor(model))
        return loaded, find_ffn_blocks(loaded.model), find_heads(loaded.model)


def built(family: str) -> tuple[Any, Any, tuple[FfnBlock, ...], tuple[str, ...]]:
    """Return a copy of a model, its processor, blocks and heads."""
    loaded, blocks, heads = _built(family)
    return copy.deepcopy(loaded.model), loaded.processor, blocks, heads


def adapted(family: str) -> tuple[Any, Any, tuple[FfnBlock, ...], Any]:
    """Return a PEFT model with extended heads as after training, its processor, blocks, base.

    The base is the one that all copies are made of; no test changes it.
    """
    model, processor, blocks, heads = built(family)
    base = _built(family)[0].model
    with quiet():
        extend_head(model, NEW, init="mean", seed=0)
        peft_model = attach(model, blocks, AdapterConfig(rank=2), head_names=heads, seed=0)
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in peft_model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=noise))
    return peft_model.eval(), processor, blocks, base


def answers(model: Any, inputs: Any = INPUTS) -> list[torch.Tensor]:
    """Return logits, and boxes or masks."""
    with torch.no_grad():
        return [value for value in outputs_only(model, inputs) if value is not None]


def test_the_tables_are_of_every_family() -> None:
    assert set(EXPECTED_PARTS) == set(EXPECTED_CLASS_ROWS) == set(SCENES)


@families
def test_blocks_of_every_part_equal_the_hand_written_table(family: str) -> None:
    loaded, blocks, _ = _built(family)
    model = loaded.model
    found: dict[str, list[Any]] = {part.at: [] for part in EXPECTED_PARTS[family]}
    for block in blocks:
        (at,) = [at for at in found if block.name.startswith(at + ".")]
        layers = [model.get_submodule(name) for name in block.linears]
        found[at].append(tuple((layer.in_features, layer.out_features) for layer in layers))
    assert found == {part.at: list(part.networks) for part in EXPECTED_PARTS[family]}


@families
def test_extension_keeps_old_rows_and_old_answers(family: str) -> None:
    """Rows bit for bit; answers to 1e-5, as BLAS sums more rows in another order."""
    model, _, _, heads = built(family)
    tensors = class_tensors(model)
    rows = {}
    for one in tensors:
        value = getattr(model.get_submodule(one.module), one.name)
        rows[one] = value.detach().clone()
    assert {t.module: len(value) for t, value in rows.items()} == EXPECTED_CLASS_ROWS[family]
    kind = loss_kind(model)
    before = answers(model)
    extend_head(model, NEW, init="mean", seed=0)
    for one, old in rows.items():
        now = getattr(model.get_submodule(one.module), one.name).detach()
        assert len(now) == len(old) + 2
        assert torch.equal(now[:5], old[:5])
        assert torch.equal(now[7:], old[5:])
    after = answers(model)
    columns = 1 if kind.pixels else -1
    kept = torch.tensor([*range(5), *([7] if kind.nothing else [])])
    after[0] = after[0].index_select(columns, kept)
    for old, now in zip(before, after, strict=True):
        torch.testing.assert_close(now, old, rtol=0, atol=1e-5)
    assert model.config.id2label == NEW
    assert find_heads(model) == heads
    if hasattr(model.config, "group_detr"):
        model.config.group_detr = 1  # as in evaluation mode; the library's criterion misses that
    labels: Any = torch.full((3, SIDE, SIDE), 6)
    if not kind.pixels:
        labels = (boxes if len(after) > 1 and after[1].shape[-1] == 4 else masks)((2, 0, 3))
        labels[0]["class_labels"][:] = torch.tensor([5, 6])
    torch.manual_seed(5)
    expected = library_loss(model, labels).detach()
    torch.manual_seed(5)
    ours = decompose(model, INPUTS, labels).total().detach()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["rt-detr", "rt-detr-v2", "d-fine", "deimv2"])
def test_denoising_knows_new_classes(family: str) -> None:
    """In training mode labels are embedded; "no object" is the embedding behind the classes."""
    model, _, _, _ = built(family)
    extend_head(model, NEW, init="mean", seed=0)
    labels = boxes((2, 1, 1))
    for image in labels:
        image["class_labels"][:] = 6
    model.train()
    library_loss(model, labels).backward()
    gradient = model.model.denoising_class_embed.weight.grad
    assert gradient[6].any()
    assert not gradient[7].any()


@families
def test_one_step_of_the_tasks_units_moves_every_adapter_tensor(family: str) -> None:
    peft_model, _, blocks, _ = adapted(family)
    assert len(adapter_groups(peft_model, blocks)) == len(blocks)
    before = snapshot(peft_model)
    task = find(_built(family)[0].task)
    trained = [p for p in peft_model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0)
    units = task.units(peft_model, examples(ids=(0, 3, 5)), None, view_of(ROLES_OF_ROWS, 5))
    values = compute_terms(units, TERMS, dict.fromkeys(ROLES, 1.0))
    torch.stack(list(values.values())).sum().backward()
    optimiser.step()
    check_moved(before, peft_model, stage="1-learn")


@saved_families
def test_plain_peft_and_the_pipeline_give_the_runs_answers(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft_model, processor, _, base = adapted(family)
    expected = answers(peft_model)
    base_dir = save_model(base, tmp_path / "base", processor=processor)
    adapter_dir = save_adapter(
        peft_model, tmp_path / "adapter", base_name=str(base_dir), processor=processor
    )
    recipe = re.search(r"```python\n(.*?)```", (adapter_dir / "README.md").read_text(), re.DOTALL)
    assert recipe is not None
    monkeypatch.chdir(tmp_path)
    read: dict[str, Any] = {}
    with quiet():
        exec(recipe.group(1), read)  # as it stands: PEFT and transformers alone
    for value, wanted in zip(answers(read["model"]), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-4)
    merged_dir = save_merged(peft_model, tmp_path / "model", processor=processor, kswap=NOTES)
    loaded = load_base(str(merged_dir))
    for value, wanted in zip(answers(loaded.model), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-4)
    assert (loaded.id2label, loaded.forgotten) == (NEW, ("tree",))
    _compare_with_the_pipeline(
        peft_model, processor, merged_dir, detects=loaded.task == "detection"
    )


def _compare_with_the_pipeline(model: Any, processor: Any, folder: Path, *, detects: bool) -> None:
    """Names, scores and masks of transformers' pipeline are those of the adapted model."""
    image = picture()
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    size = [(SIDE, SIDE)]
    with quiet():
        if detects:
            said = pipeline("object-detection", model=str(folder))(image, threshold=0.0)
            (found,) = processor.post_process_object_detection(
                outputs, threshold=0.0, target_sizes=size
            )
            wanted = sorted(
                (float(score), NEW[int(label)])
                for score, label in zip(found["scores"], found["labels"], strict=True)
            )
            got = sorted((answer["score"], answer["label"]) for answer in said)
            assert [name for _, name in got] == [name for _, name in wanted]
            assert [s for s, _ in got] == pytest.approx([s for s, _ in wanted], abs=1e-4)
            return
        said = pipeline("image-segmentation", model=str(folder))(image, subtask="semantic")
        (semantic,) = processor.post_process_semantic_segmentation(outputs, target_sizes=size)
    shares = {NEW[int(row)]: float((semantic == row).float().mean()) for row in semantic.unique()}
    got_shares = {answer["label"]: sum(answer["mask"].histogram()[1:]) / SIDE**2 for answer in said}
    assert got_shares == pytest.approx(shares, abs=5e-3)

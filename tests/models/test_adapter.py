"""LoRA sits on exactly the feed-forward linears, starts as the base bit for bit, and must move."""

import pytest
import torch
from models.families import FAMILIES, LABELS, tiny_inputs
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from kswap.models.adapter import (
    AdapterNotMovedError,
    adapter_groups,
    adapter_tensors,
    attach,
    check_moved,
    negate,
    snapshot,
)
from kswap.models.head import extend_head, find_heads, head_linear
from kswap.models.structure import FfnBlock
from kswap.settings import AdapterConfig

NEW = {**LABELS, 5: "horse", 6: "ship"}
CONFIG = AdapterConfig(rank=2, scale=0.5)


def adapted(built, family, **options):
    model, blocks = built(family)
    extend_head(model, NEW, init="random", seed=0)
    heads = find_heads(model)
    return attach(model, blocks, CONFIG, head_names=heads, seed=0, **options), blocks


def train(peft_model, steps=2, lr=1e-2, classes=(5, 6, 0, 1)):
    trained = [p for p in peft_model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=lr, weight_decay=0)
    for _ in range(steps):
        optimiser.zero_grad()
        logits = peft_model(**tiny_inputs(peft_model.get_base_model())).logits
        nn.functional.cross_entropy(logits, torch.tensor(classes)).backward()
        optimiser.step()


@pytest.mark.parametrize("family", FAMILIES)
def test_starts_as_the_base_bit_for_bit_and_groups_partition_it(family, built):
    base, _ = built(family)
    extend_head(base, NEW, init="random", seed=0)
    base.requires_grad_(False)  # as under the adapter: torch.matmul folds by it, and rounds by that
    peft_model, blocks = adapted(built, family)
    inputs = tiny_inputs(base)
    with torch.no_grad():
        assert torch.equal(peft_model(**inputs).logits, base(**inputs).logits)
    groups = adapter_groups(peft_model, blocks)
    assert list(groups) == [block.name for block in blocks]
    ids = [id(matrix) for matrices in groups.values() for matrix in matrices]
    assert len(ids) == len(set(ids)) == len(adapter_tensors(peft_model))
    for block in blocks:
        assert len(groups[block.name]) == 2 * len(block.linears)


@pytest.mark.parametrize("rank", [2, 64])
def test_negating_is_exact_also_where_a_layer_is_narrower_than_the_rank(built, rank):
    base, blocks = built("vit")
    config = AdapterConfig(rank=rank, scale=0.5)
    model = attach(base, blocks, config, head_names=find_heads(base), seed=0)
    layers = [one for one in model.modules() if isinstance(one, LoraLayer)]
    before = snapshot(model)
    train(model, classes=(0, 1, 2, 3))
    learnt = [layer.get_delta_weight("default").clone() for layer in layers]
    negate(model, before, 1.5)
    for layer, was in zip(layers, learnt, strict=True):
        assert was.any()
        assert torch.allclose(layer.get_delta_weight("default"), -1.5 * was, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_moves_within_two_steps(family, built):
    peft_model, _ = adapted(built, family)
    before = snapshot(peft_model)
    train(peft_model)
    check_moved(before, peft_model, stage="1-learn")


def test_exactly_the_named_modules_are_adapted(built):
    peft_model, blocks = adapted(built, "vit")
    base = peft_model.get_base_model()
    hit = [name for name, module in base.named_modules() if isinstance(module, LoraLayer)]
    assert hit == [name for block in blocks for name in block.linears]
    layer = base.get_submodule(hit[0])
    assert layer.scaling["default"] == 0.5
    assert layer.r["default"] == 2
    trained = {name for name, p in peft_model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "classifier.modules_to_save" in name for name in trained)


def test_a_name_that_is_the_end_of_another_is_not_hit(built):
    """PEFT matches lists by suffix: `layers.0...` would also hit `vit.layers.0...`."""
    model, blocks = built("vit")
    peft_model = attach(model, blocks[:1], CONFIG, head_names=["classifier"], seed=0)
    assert len(adapter_tensors(peft_model)) == 4
    with pytest.raises(RuntimeError, match="exactly one group"):
        adapter_groups(peft_model, (*blocks[:1], FfnBlock("again", blocks[0].linears)))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_head_whose_name_ends_another_is_the_only_one_saved(built, tmp_path):
    """PEFT matches the ends of names, so that it would save the other one too."""
    models = []
    for _ in range(2):
        model, blocks = built("vit")
        extend_head(model, NEW, init="random", seed=0)
        model.vit.layers[0].classifier = nn.ModuleList([nn.Linear(3, 3)])
        models.append(model)
    peft_model = attach(models[0], blocks, CONFIG, head_names=["classifier"], seed=0)
    train(peft_model)
    assert not [
        n for n, p in peft_model.named_parameters() if "layers.0.classifier" in n and p.grad
    ]
    inputs = tiny_inputs(peft_model.get_base_model())
    with torch.no_grad():
        trained = peft_model(**inputs).logits
        with peft_model.disable_adapter():
            before = peft_model(**inputs).logits
        assert torch.equal(before, models[1](**inputs).logits)
    peft_model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(models[1], tmp_path).eval()
    with torch.no_grad():
        assert torch.allclose(again(**inputs).logits, trained, rtol=0, atol=1e-6)
        assert not torch.allclose(before, trained, rtol=0, atol=1e-3)


def test_matrices_come_from_the_seed_alone(built):
    made = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        model, blocks = built("vit")
        random = torch.get_rng_state()
        peft_model = attach(model, blocks, CONFIG, head_names=["classifier"], seed=seed)
        assert torch.equal(random, torch.get_rng_state())
        made.append({name: t.detach().clone() for name, t in adapter_tensors(peft_model).items()})
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    downs = [name for name in made[0] if "lora_A" in name]
    assert not any(torch.equal(made[0][name], made[2][name]) for name in downs)
    # Kaiming uniform with a = sqrt 5 is U(-1/sqrt(fan_in), 1/sqrt(fan_in))
    assert all(made[0][name].abs().max() <= made[0][name].shape[1] ** -0.5 for name in downs)
    assert all(made[0][name].any() != ("lora_B" in name) for name in made[0])


@pytest.mark.parametrize(("head_train", "trains"), [("new", True), ("all", True), ("none", False)])
def test_the_head_trains_as_asked(head_train, trains, built):
    peft_model, _ = adapted(built, "deit-distilled", head_train=head_train)
    for name in ("cls_classifier", "distillation_classifier"):
        assert all(p.requires_grad is trains for p in head_linear(peft_model, name).parameters())


def test_training_mode_is_kept(built):
    model, blocks = built("swin")
    assert not attach(model, blocks, CONFIG, head_names=["classifier"], seed=0).training


def test_a_tensor_that_never_moved_is_named(built):
    peft_model, _ = adapted(built, "vit")
    frozen = "base_model.model.vit.layers.1.mlp.fc1.lora_A.default.weight"
    before = snapshot(peft_model)
    train(peft_model)
    with torch.no_grad():
        adapter_tensors(peft_model)[frozen].copy_(before[frozen])
    with pytest.raises(
        AdapterNotMovedError, match=r"stage 2-forget: 1 of 8 .*layers\.1\.mlp\.fc1\.lora_A"
    ) as caught:
        check_moved(before, peft_model, stage="2-forget")
    assert "layers.0" not in str(caught.value)


def test_a_zeroed_group_is_exempt_but_a_zero_start_is_not(built):
    peft_model, blocks = adapted(built, "vit")
    before = snapshot(peft_model)
    with pytest.raises(AdapterNotMovedError, match="8 of 8"):
        check_moved(before, peft_model, stage="1-learn")
    train(peft_model)
    with torch.no_grad():
        for matrix in adapter_groups(peft_model, blocks)["vit.layers.0"]:
            matrix.zero_()
    check_moved(before, peft_model, stage="1-learn")
    before = snapshot(peft_model)  # the next stage starts with the zero group
    train(peft_model)
    check_moved(before, peft_model, stage="2-forget")


def test_one_step_from_zero_cannot_move_the_first_matrix(built):
    peft_model, _ = adapted(built, "vit")
    before = snapshot(peft_model)
    train(peft_model, steps=1)
    with pytest.raises(AdapterNotMovedError, match="lora_A"):
        check_moved(before, peft_model, stage="1-learn")
    check_moved(before, peft_model, stage="1-learn", num_steps=1)

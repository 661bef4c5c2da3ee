"""The loop over one stage: one forward per step, the terms of the plan, one optimiser step.

Explicit, on Accelerate (mixed precision, gradient scaling, clipping, devices). Everything random in
step t is seeded by (seed, stage, t), so a run that is resumed ends like one that was never
interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from kswap.models.features import Places, recorded_features
from kswap.models.prefix import Prefix
from kswap.models.unread import Unread
from kswap.objectives import NEEDS_FEATURES, OBJECTIVES, Units, serves
from kswap.objectives.consolidation import consolidation
from kswap.objectives.sparsity import group_lasso, proximal_step
from kswap.plan import Stage
from kswap.ranks import rank, shards_base
from kswap.settings import SparsityConfig, TermConfig, TrainingConfig
from kswap.tasks import Examples, Pixels, Task, View, make_examples
from kswap.training.analysis import Analysis
from kswap.training.events import EventLog
from kswap.training.optimiser import Trainables, learning_rate
from kswap.training.progress import Progress, describe
from kswap.training.renewal import Renewal
from kswap.training.streams import Batch, Streams
from kswap.training.teaching import teach

_NOTHING: Mapping[str, Tensor] = {}
_NOWHERE = Places()
Augment = Callable[[Examples], Examples]


@dataclass(frozen=True)
class Trainee:
    """What is trained, and how its inputs are made; the same for all stages of a run."""

    model: nn.Module
    task: Task
    accelerator: Accelerator
    pixels: Pixels
    augment: Augment | None
    views: Mapping[str, View]
    """By the name of the stage."""
    teach_now: bool
    """Whether the base model answers at every step (its answers are needed and not kept)."""
    as_base: Callable[[], AbstractContextManager[Any]]
    """Within it the model is the base model."""
    base_places: Places
    """Of scenes: where the base's features of units are kept, to compare with."""
    groups: Sequence[Sequence[nn.Parameter]]
    moved: Trainables
    training: TrainingConfig
    seed: int
    prefix: Prefix | None = None
    """What does not run again where a batch brings its outputs."""
    unread: Unread | None = None
    """What need not see tokens that no term of the stage reads."""

    @property
    def base(self) -> Any:
        """The transformers model, adapter and heads in it, without PEFT's wrapper."""
        model: Any = self.model
        return model.get_base_model()


def compute_terms(
    groups: Sequence[Units], terms: Mapping[str, TermConfig], divisors: Mapping[str, float]
) -> dict[str, Tensor]:
    """Return each term, weighted: the sum over its units, divided.

    Args:
        groups: units of one micro-batch; a term is computed from the group that has what its
            objective compares.
        terms: the terms of the stage.
        divisors: of each term, for the whole batch; 0: the batch has no units of the term.
    """
    values: dict[str, Tensor] = {}
    for name, term in terms.items():
        for group in groups:
            if not divisors[name] or not serves(group, term.objective):
                continue
            chosen = group.having(term.roles)
            if len(chosen.class_ids):
                loss = OBJECTIVES[term.objective](chosen, term, divisors[name]).sum()
                values[name] = term.weight * loss / divisors[name]
    return values


def train_stage(
    trainee: Trainee,
    stage: Stage,
    streams: Streams,
    optimiser: torch.optim.Optimizer,
    *,
    first_step: int,
    total_step: int,
    events: EventLog,
    after_step: Callable[[int], None],
    report: Progress,
    analysis: Analysis | None = None,
    prepared: Mapping[str, Tensor] = _NOTHING,
    renewal: Renewal | None = None,
) -> None:
    """Train from `first_step` to the end of the stage.

    Args:
        trainee: model, adapter and inputs.
        stage: what is trained; its terms and their weights.
        streams: batches of the stage.
        optimiser: prepared by Accelerate, with the state of `first_step`.
        first_step: steps of this stage that are done already.
        total_step: steps of the whole run before this stage (for trackers).
        events: gets one line per step.
        after_step: called with the number of finished steps (checkpoints, signals).
        report: progress bar.
        analysis: looks at the gradients of some steps; results are the same without it.
        prepared: what `preparing.prepare` found, and `anchor.NAME` beside each `fisher.NAME`.
        renewal: looks at the model now and then; with the frames of `first_step`.

    Raises:
        NonFiniteLossError: a term is not finite.
    """
    set_modes(trainee.model, checkpointing=trainee.training.gradient_checkpointing)
    num_steps = streams.num_steps
    trainee = _framed(trainee, stage, renewal)
    for step in range(first_step, num_steps):
        begin = time.perf_counter()
        if renewal is not None and renewal.is_due(step):
            set_modes(trainee.model, checkpointing=trainee.training.gradient_checkpointing)
            trainee = _framed(trainee, stage, renewal)
        torch.manual_seed(step_seed(trainee.seed, stage.index, step) + rank())
        rate = learning_rate(stage.config.optimiser, step, num_steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = streams.batch(step)
        looks = analysis if analysis is not None and analysis.looks_at(step) else None
        terms = _backward(trainee, stage, batch, looks, prepared)
        if looks is not None:
            looks.close(step)
        for name, parameter in trainee.moved.adapter:
            if f"mask.{name}" in prepared and parameter.grad is not None:
                parameter.grad.mul_(prepared[f"mask.{name}"])
        if stage.config.optimiser.clip_norm is not None:
            limit = stage.config.optimiser.clip_norm
            trainee.accelerator.clip_grad_norm_(trainee.moved.parameters, limit)
        optimiser.step()
        optimiser.zero_grad()
        _shrink(trainee, stage.config.sparsity, rate)
        seconds = time.perf_counter() - begin
        line = {
            "stage": stage.name,
            "step": step + 1,
            "total_step": total_step + step + 1,
            "lr": rate,
            "seconds": round(seconds, 6),
            "images_per_s": round(len(batch) / seconds, 3),
        }
        events.add(line, terms)
        after_step(step + 1)
        epoch = stage.config.epochs * (step + 1) / num_steps
        speed = len(batch) / seconds
        report(step + 1, num_steps, describe(events.last, epoch=epoch, images_per_s=speed))


def _framed(trainee: Trainee, stage: Stage, renewal: Renewal | None) -> Trainee:
    """Return a trainee whose terms in a stage go by the frames of the model as it is by now."""
    view = trainee.views[stage.name]
    if renewal is None or view.bank is None:
        return trainee
    view = replace(view, bank=replace(view.bank, frames=renewal.frames))
    return replace(trainee, views={**trainee.views, stage.name: view})


def _backward(
    trainee: Trainee,
    stage: Stage,
    batch: Batch,
    analysis: Analysis | None = None,
    prepared: Mapping[str, Tensor] = _NOTHING,
) -> dict[str, Tensor]:
    """Forward and backward of one step in micro-batches; return the terms of the whole batch."""
    accelerator = trainee.accelerator
    terms = stage.config.terms
    view = trainee.views[stage.name]
    divisors = trainee.task.divisors(batch.samples, batch.roles, terms, view)
    sums: dict[str, Tensor] = {}
    first, num_ranks = accelerator.process_index, accelerator.num_processes
    every = list(batch.split(trainee.training.accumulation * num_ranks))
    parts = every[first::num_ranks]
    spare = len(parts)
    if shards_base() and len(parts) < len(every[::num_ranks]):
        parts.append(every[-1])  # as many forwards and backwards as the others do
    for number, part in enumerate(parts):
        last = number == len(parts) - 1 and accelerator.is_main_process
        with nullcontext() if number == len(parts) - 1 else accelerator.no_sync(trainee.model):
            units = units_of(trainee, stage, part)
            share = trainee.task.share(part.samples, batch.samples)
            values = compute_terms(units, terms, _shared(divisors, terms, share))
            sparsity = stage.config.sparsity
            if last and sparsity.weight and sparsity.method == "subgradient":
                norms = group_lasso(trainee.groups, epsilon=sparsity.epsilon)
                values["group_lasso"] = sparsity.weight * norms
            if last and stage.config.consolidation:
                held = consolidation(
                    (parameter, prepared[f"anchor.{name}"], prepared[f"fisher.{name}"])
                    for name, parameter in trainee.moved.adapter
                    if f"fisher.{name}" in prepared
                )
                values["consolidation"] = stage.config.consolidation * held
            if number >= spare:
                values = {}
            if values and analysis is not None:
                analysis.look(values, terms)
            losses = list(values.values())
            if shards_base():  # all blocks are put together again, also where no term asks
                losses += [t.nan_to_num(0, 0, 0).sum() * 0 for t in _outputs(units)]
            if losses:
                accelerator.backward(torch.stack(losses).sum())
            for name, value in values.items():
                sums[name] = sums.get(name, torch.zeros_like(value.detach())) + value.detach()
    if not sums:
        for parameter in trainee.moved.parameters:
            parameter.grad = None
    if num_ranks > 1:
        names = [*terms, "group_lasso", "consolidation"]
        return _over_ranks(accelerator, trainee.moved.parameters, sums, names)
    return sums


def _outputs(groups: Sequence[Units]) -> list[Tensor]:
    """Return what a model's forward has left in its units."""
    return [
        tensor
        for units in groups
        for tensor in (units.logits, units.own)
        if tensor is not None and tensor.requires_grad
    ]


def _shared(
    divisors: Mapping[str, float], terms: Mapping[str, TermConfig], share: float
) -> dict[str, float]:
    """Return the divisors for a micro-batch with that share of the units of the task's own loss.

    The units of objectives on features are counted as they are.
    """
    return {
        name: value if terms[name].objective in NEEDS_FEATURES else value / share
        for name, value in divisors.items()
    }


def _over_ranks(
    accelerator: Accelerator,
    parameters: Sequence[nn.Parameter],
    sums: Mapping[str, Tensor],
    names: Sequence[str],
) -> dict[str, Tensor]:
    """Add up gradients, in place, and terms over the processes; what none has stays away."""
    nothing = torch.zeros((), device=parameters[0].device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    there = [float(p.grad is not None) for p in parameters] + [float(n in sums) for n in names]
    flat = torch.cat(
        [
            *(gradient.flatten().float() for gradient in gradients),
            torch.stack([sums.get(name, nothing).float() for name in names]),
            torch.tensor(there, device=nothing.device),
        ]
    )
    total: Tensor = accelerator.reduce(flat, reduction="sum")  # one message a step
    sizes = [gradient.numel() for gradient in gradients]
    *parts, values, flags = torch.split(total, [*sizes, len(names), len(there)])
    found = flags > 0
    for number, (parameter, part) in enumerate(zip(parameters, parts, strict=True)):
        if found[number]:
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
    return {
        name: values[number] for number, name in enumerate(names) if found[len(parameters) + number]
    }


def units_of(trainee: Trainee, stage: Stage, part: Batch) -> list[Units]:
    """Do one forward, with gradient, and return the units of a (micro-)batch."""
    view = trainee.views[stage.name]
    examples = make_examples(part.samples, trainee.pixels, part.roles)
    if trainee.augment is not None and part.kept is None:
        examples = trainee.augment(examples)
    examples = replace(examples, noise=part.noise.to(examples.pixels.device))
    with trainee.accelerator.autocast():
        teacher = _teacher(trainee, part, examples, view)
        images = trainee.task.units_are_images
        with (
            _playing(trainee, part, examples.pixels.device),
            _skipping(trainee),
            recorded_features(trainee.model, view.places if images else _NOWHERE) as features,
        ):
            units = trainee.task.units(trainee.model, examples, teacher, view)
    if not images or (view.bank is None and not view.draws):
        return units
    return [_informed(u, features, teacher, part.noise, view) for u in units]


def _playing(trainee: Trainee, part: Batch, device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which what a batch brings is not computed again."""
    if trainee.prefix is None or part.kept is None:
        return nullcontext()
    kept = {name: values.to(device, non_blocking=True) for name, values in part.kept.items()}
    return trainee.prefix.playing(trainee.base, kept)


def _skipping(trainee: Trainee) -> AbstractContextManager[None]:
    """Return a context in which tokens that nobody reads are not computed."""
    if trainee.unread is None:
        return nullcontext()
    return trainee.unread.skipped(trainee.base)


def _informed(
    units: Units,
    features: dict[str, Tensor],
    teacher: Mapping[str, Tensor] | None,
    noise: Tensor,
    view: View,
) -> Units:
    """Return units of whole images with what objectives on features ask for."""
    base = {name: kept for name, kept in (teacher or {}).items() if name in features}
    return replace(
        units,
        features=features or None,
        num_blocks=view.places.num_blocks,
        base_features=base or None,
        noise=noise.to(units.class_ids.device),
        bank=view.bank,
    )


def _teacher(
    trainee: Trainee, part: Batch, examples: Examples, view: View
) -> dict[str, Tensor] | None:
    """Return what the base model answers: kept, or, where that is not possible, computed now."""
    if part.untaught is not None and (part.untaught.any() or shards_base()):
        return _completed(trainee, part, view.num_base, view.places)
    if part.teacher is not None:
        device = examples.pixels.device
        return {name: kept.to(device) for name, kept in part.teacher.items()}
    if not trainee.teach_now:
        return None
    with torch.no_grad(), trainee.as_base():
        return teach(
            trainee.model,
            trainee.task,
            examples,
            num_base=view.num_base,
            places=trainee.base_places,
            num_slots=view.num_slots,
        )


@torch.no_grad()
def _completed(
    trainee: Trainee, part: Batch, num_base: int, places: Places
) -> dict[str, Tensor] | None:
    """Return what is kept of the base's answers, and compute them where the images are not kept.

    As kept answers are: of the images without augmentation.
    """
    assert part.untaught is not None
    rows = part.untaught.nonzero()[:, 0]
    # A sharded base wants the same number of forwards of every process: one that has nothing to
    # ask asks about any image and takes no answer.
    asked = rows if len(rows) else torch.zeros(1, dtype=torch.long)
    examples = make_examples(part.samples.rows(asked.numpy()), trainee.pixels)
    with trainee.as_base(), recorded_features(trainee.model, places) as inside:
        taught = trainee.task.teach(trainee.model, examples, num_base=num_base)
    taught = {**taught, **{name: found.float() for name, found in inside.items()}}
    taught = {name: answers[: len(rows)] for name, answers in taught.items()}
    whole = {}
    for name in {**(part.teacher or {}), **taught}:
        answers = taught.get(name)
        kept = (part.teacher or {}).get(name)
        if kept is None:
            assert answers is not None
            kept = answers.new_zeros(len(part), *answers.shape[1:])
        kept = kept.to(examples.pixels.device)
        if answers is not None:
            kept = kept.index_copy(0, rows.to(kept.device), answers.to(kept.dtype))
        whole[name] = kept
    return whole


def _shrink(trainee: Trainee, sparsity: SparsityConfig, rate: float) -> None:
    if sparsity.weight and sparsity.method == "proximal":
        proximal_step(trainee.groups, rate * sparsity.weight)


def step_seed(seed: int, stage: int, step: int) -> int:
    """Return one 63-bit seed for everything random in a step."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + stage)
    base = int(torch.randint(2**62, (1,), generator=generator))
    return (base + step) % (2**63 - 1)


def set_modes(model: nn.Module, *, checkpointing: bool) -> None:
    """Put frozen modules in evaluation mode and LoRA's dropout in training mode where LoRA trains.

    In evaluation mode there is no dropout and batch statistics stay. Dropout in a block that stays
    as it is would be noise that nothing learns from, and that a kept prefix cannot draw anew.
    transformers recomputes activations only in layers whose own `training` flag is set; the flag is
    set on those layers alone, not on what they contain.
    """
    model.eval()
    trained = {
        name.partition(".lora_A.")[0]
        for name, parameter in model.named_parameters()
        if ".lora_A." in name and parameter.requires_grad
    }
    for name, module in model.named_modules():
        layer, found, _ = name.partition(".lora_dropout")
        if (found and layer in trained) or (
            checkpointing and isinstance(module, GradientCheckpointingLayer)
        ):
            module.training = True

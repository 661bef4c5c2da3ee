"""One run from where it stands to its end: base, stages, and what is left."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from kswap.data.samples import take
from kswap.models import adapter as adapters
from kswap.models import artefact, head, structure
from kswap.ranks import shards_base
from kswap.running.knowledge import Knowledge
from kswap.running.model import adapted, base_model, shard_base
from kswap.running.resuming import part_of, resume
from kswap.running.saving import save
from kswap.running.scoring import scored
from kswap.running.stages import StageRunner, check_lengths
from kswap.running.state import RunState
from kswap.tasks import make_examples
from kswap.tasks.frames import frame_of
from kswap.training.augment import make_change
from kswap.training.checkpoint import fingerprint_of, weights_digest
from kswap.training.depth import deeper_than, narrowed, num_frozen_as_said
from kswap.training.loop import Trainee
from kswap.training.optimiser import Trainables
from kswap.training.recomputing import enable_checkpointing


def finish(state: RunState, *, resume_from: Path) -> dict[str, Any]:
    """Train what is not trained yet, save, and return the content of results.json.

    Args:
        state: what the run is made of; its position is read and moves on.
        resume_from: checkpoints of the process that writes them.

    Raises:
        UserError: what the config asks for does not go together with model, images or checkpoint.
        Terminated: asked to stop; a checkpoint was written.
    """
    check_lengths(state)
    state.base_digest = weights_digest(state.loaded.model)
    tensors = resume(state, resume_from, fingerprint_of(state.base_digest, state.data))
    state.written([state.folder.config])
    model = base_model(state)
    state.heads = head.find_heads(model)
    state.blocks = structure.find_ffn_blocks(model)
    notes = [*deeper_than(state.stages, len(state.blocks)), *_more_objects(state, model)]
    for note in [*notes, *_padding_as_picture(state, model)]:
        state.on_note(note)
    # Where the base is sharded, the whole of it is kept for what is saved.
    whole_base = shard_base(state, model) if shards_base() else None
    knowledge = Knowledge(state)
    _begin_prefixes(state, knowledge, model)
    if not state.position.stages:
        state.position.stages.append(scored(state, "base", model, state.data.num_base_classes))
    teachers = knowledge.answers(model)
    swapped = adapted(state, model)
    groups = adapters.adapter_groups(swapped, state.blocks)
    trainee = _trainee(state, knowledge, swapped, list(groups.values()))
    if weights := part_of(tensors, "model"):
        artefact.load_trainable_state(swapped, weights)
    runner = StageRunner(state, knowledge, teachers)
    for stage in state.stages[state.position.stage - 1 :]:
        runner.run(stage, trainee, tensors)
        tensors = {}
    return save(state, swapped, groups, whole_base)


def _padding_as_picture(state: RunState, model: Any) -> list[str]:
    """Return a note where images are padded for a detector that takes padding for picture.

    What its boxes are fractions of is found out here, before anything is recorded.
    """
    for images in (one for splits in state.data.sets.values() for one in splits.values()):
        if len(images) and images.boxes is not None and images.sizes is not None:
            examples = make_examples(take(images, slice(0, 1)), state.pixels)
            if frame_of(model, examples) is None:
                return []
            height, width = examples.pixels.shape[-2:]
            return [
                f"images of several sizes are padded to {width}x{height} pixels, which "
                f"{type(model).__name__} takes for picture: it may score lower here than on the "
                "images alone; where its preprocessor_config.json has one size "
                "(size: {height: ..., width: ...}) nothing is padded"
            ]
    return []


def _more_objects(state: RunState, model: Any) -> list[str]:
    """Return a note for each role with images of more objects than a detector has queries."""
    config = model.config
    most = getattr(config, "num_queries", None) or getattr(config, "num_detection_tokens", None)
    if not isinstance(most, int):
        return []
    notes = []
    for role, splits in state.data.sets.items():
        counts = [int((~one.crowd).sum()) for one in splits["train"].boxes or ()]
        if found := sum(count > most for count in counts):
            notes.append(
                f"{role}: {found} training images have more objects (up to {max(counts)}) than the "
                f"model has queries ({most}); so many at most are learned of an image"
            )
    return notes


def _begin_prefixes(state: RunState, knowledge: Knowledge, model: Any) -> None:
    """Let the base's forwards keep what lies below the blocks that the first stage trains."""
    said = num_frozen_as_said(state.stages[0], len(state.blocks))

    def probe() -> Trainee:
        """Return a copy of the base as the first stage will train it."""
        copied = adapted(state, copy.deepcopy(model))
        groups = adapters.adapter_groups(copied, state.blocks)
        return narrowed(_trainee(state, knowledge, copied, list(groups.values())), said or 0)

    state.prefixes.begin(
        probe,
        state.stages[0],
        None if state.position.stages or state.data.streamed else said,
        state.data.sets,
        [block.name for block in state.blocks],
        views_change_answers=state.task.teacher_sees_views,
    )


def _trainee(
    state: RunState, knowledge: Knowledge, model: Any, groups: list[list[nn.Parameter]]
) -> Trainee:
    training = state.config.training
    size = state.pixels(next(iter(state.data.sets.values()))["train"].images[:1]).shape[-2:]
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if training.gradient_checkpointing:
        enable_checkpointing(model.get_base_model())
    return Trainee(
        model=model,
        task=state.task,
        accelerator=state.accelerator,
        pixels=state.pixels,
        augment=make_change(state.config.data.augment, (size[0], size[1])),
        views={stage.name: knowledge.view(stage) for stage in state.stages},
        teach_now=knowledge.teach_now,
        as_base=lambda: adapters.without_adapter(model),
        base_places=knowledge.places,
        groups=groups,
        moved=Trainables(
            adapter=[(n, p) for n, p in named if "lora_" in n],
            head=[(n, p) for n, p in named if "lora_" not in n],
        ),
        training=training,
        seed=state.config.seed,
    )

"""One run: load, extend, attach; for every stage of the plan train and score; save.

Each step below is one call into the package that knows how. Whatever a run needs to go on after it
was killed is in a checkpoint; whatever it leaves is written under a temporary name and renamed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kswap.config import SwapConfig, resolve
from kswap.data import SwapData, build_data
from kswap.environment import describe_environment
from kswap.errors import UserError
from kswap.evaluation import score_roles
from kswap.files import disk_errors
from kswap.manifest import check_files, damaged_files
from kswap.models import artefact
from kswap.models.fits import check_fits
from kswap.models.loading import Loaded, find_task, from_objects, load_base, task_of
from kswap.models.quantised import check_base_weights
from kswap.objectives import NEEDS_KEPT
from kswap.plan import Stage, plan
from kswap.ranks import own_output, own_sharding, world_size
from kswap.run_folder import (
    RunFolder,
    check_classes,
    check_config,
    check_data_is_named,
    open_run,
    read_results,
    write_config,
)
from kswap.running.resuming import check_same
from kswap.running.run import finish
from kswap.running.state import RunState
from kswap.settings import ROLES, Role
from kswap.signals import Interrupts
from kswap.tasks import find
from kswap.training.checkpoint import fingerprint_of, weights_digest
from kswap.training.device import make_accelerator, memory_errors
from kswap.training.progress import progress
from kswap.training.recomputing import check_checkpointing

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_WITHOUT_KEPT = {
    "masked_distillation": "bounded_ce_sample",
    "hedged_cross_entropy": "cross_entropy",
}
"""Objective that needs classes to keep -> one for the same role that does not."""


@dataclass(frozen=True)
class SwapResult:
    """What a finished run left."""

    run_dir: Path
    results: dict[str, Any]
    """The content of results.json."""
    notes: tuple[str, ...] = ()
    """What was left out or done otherwise than one might expect: skipped images, copies, ..."""
    resumed: bool = False
    """Whether the run went on from a checkpoint, or had been finished before."""

    @property
    def scores(self) -> dict[str, dict[str, float | None]]:
        """Scores by stage name, then role."""
        return {stage["name"]: stage["scores"] for stage in self.results["stages"]}


def swap(
    config: SwapConfig,
    *,
    model: Any = None,
    processor: Any = None,
    learn: Dataset | DatasetDict | None = None,
    forget: Dataset | DatasetDict | None = None,
    retain: Dataset | DatasetDict | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> SwapResult:
    """Learn, forget and retain as `config` says, and leave a run folder.

    Args:
        config: everything a run is made of.
        model: a classifier, segmenter or detector of transformers in memory, in place of
            `config.model`.
        processor: its image processor; needed with `model`.
        learn: data set in memory, in place of the source's `data`; an `IterableDataset`, where the
            source has `streaming: true`.
        forget: the same for the classes to forget.
        retain: the same for the classes to retain.
        on_note: called at once with whatever the user should know.

    Raises:
        UserError: config, data, model or output folder cannot be used.
        NonFiniteLossError: a term of the loss is not finite.
        DiskFullError: the disk is full; the last checkpoint is intact.
        Terminated: SIGTERM was received; the state is saved.
    """
    begin = time.perf_counter()
    config = _of_model(config, model, processor)
    given: dict[Role, Any] = {"learn": learn, "forget": forget, "retain": retain}
    in_memory = {role: source for role, source in given.items() if source is not None}
    stages = plan(config)
    _check_output_outside_data(config)
    interrupts = Interrupts()
    with (
        interrupts.installed(),
        memory_errors(),
        own_sharding(),
        disk_errors(f"output {config.output}"),
        own_output(config.output) as own,
        open_run(own) as folder,
    ):
        together = make_accelerator(config.training, folder.path) if world_size() > 1 else None
        known = check_config(folder, config)
        finished = known and _is_finished(folder, on_note)
        if together is not None:
            finished = _said_by_first(finished)
        given_again = model is not None or bool(in_memory)  # of which the config says nothing
        if finished and not given_again:
            return SwapResult(config.output, read_results(config.output), resumed=True)
        accelerator = together or make_accelerator(config.training, folder.path)
        check_base_weights(config.training, accelerator.device, in_memory=model is not None)
        loaded = from_objects(model, processor) if model is not None else load_base(config.model)
        check_checkpointing(loaded.model, config.training)
        with progress("images") as report:
            data = build_data(
                config,
                task=loaded.task,
                id2label=loaded.id2label,
                processor=loaded.processor,
                forgotten=loaded.forgotten,
                in_memory=in_memory,
                cache_dir=folder.cache,
                on_progress=report,
            )
        check_fits(loaded.model, data.pixels(_some_images(data)), loaded.source)
        _check_something_is_kept(stages, data, loaded)
        for note in data.notes:
            on_note(note)
        first = RunFolder(config.output)  # of the process that writes the run
        if finished:
            check_same(first, fingerprint_of(weights_digest(loaded.model), data))
            return SwapResult(config.output, read_results(config.output), resumed=True)
        if getattr(loaded.model.config, "problem_type", None) == "multi_label_classification":
            on_note("the model is a multi-label one; here it is trained for one label per image")
        if not known:
            write_config(folder, config, describe_environment(model_commit=loaded.commit))
        state = RunState(
            config=config,
            stages=stages,
            folder=folder,
            loaded=loaded,
            data=data,
            accelerator=accelerator,
            interrupts=interrupts,
            on_note=on_note,
            seconds={"load": time.perf_counter() - begin},
            task=find(loaded.task),
        )
        results = finish(state, resume_from=first.checkpoints)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        if not accelerator.is_main_process:
            results = read_results(config.output)
        return SwapResult(config.output, results, data.notes, resumed=known)


def _of_model(config: SwapConfig, model: Any, processor: Any) -> SwapConfig:
    """Return the config with the values for the model's task and with absolute paths.

    Raises:
        UserError: the arguments of `swap` do not go together.
    """
    if not isinstance(config, SwapConfig):
        raise UserError(
            f"config: a {type(config).__name__} is no SwapConfig; make one with "
            "SwapConfig.from_yaml or SwapConfig.from_mapping"
        )
    if processor is not None and model is None:
        raise UserError("processor: is given without a model; pass model too, or neither")
    return resolve(config.for_task(find_task(config.model) if model is None else task_of(model)))


def _is_finished(folder: RunFolder, on_note: Callable[[str], None]) -> bool:
    """Whether a run of the same config ended here, and all that it left is there and whole."""
    if not folder.results.exists():
        return False
    results = read_results(folder.path)
    check_files(folder.path, "config.yaml")
    check_files(folder.path, "events.jsonl", "arrays", may_miss=True)
    lost = damaged_files(folder.path, "adapter", "model") if folder.is_complete else []
    if folder.is_complete and not lost:
        return True
    for name in lost:
        on_note(f"{folder.path / name} is damaged or missing, and saved again")
    if results.get("audit"):
        on_note("the audit is of the model that was lost; audit the run again")
    return False


def _said_by_first(finished: bool) -> bool:
    """Return what the first of several processes says of the run folder."""
    from accelerate.utils import broadcast_object_list

    told: bool = broadcast_object_list([finished], from_process=0)[0]
    return told


def evaluate(run_dir: str | Path) -> dict[str, Any]:
    """Score RUN/model, as saved, on the test split that RUN/config.yaml names.

    Returns:
        `{"scores": {role: float | None}, "per_class": {name: float}}`.

    Raises:
        UserError: not a finished run, or its data is gone.
    """
    run_dir = Path(run_dir)
    results = read_results(run_dir)
    check_files(run_dir, "config.yaml", "adapter")
    config = SwapConfig.from_yaml(run_dir / "config.yaml")
    check_data_is_named(run_dir, config, results, verb="evaluate")
    base = load_base(config.model)
    model, processor = artefact.load(run_dir)  # the run's own, also where it was given in memory
    accelerator = make_accelerator(config.training, run_dir)
    data = build_data(
        config,
        task=base.task,
        id2label=base.id2label,
        processor=processor,
        forgotten=base.forgotten,
    )
    check_classes(run_dir, data.names, results)
    return score_roles(
        model.to(accelerator.device),
        find(base.task),
        data,
        split="test",
        num_rows=len(data.id2label),
        batch_size=config.training.eval_batch_size,
        pixels=partial(data.pixels, device=accelerator.device),
    )


def _check_output_outside_data(config: SwapConfig) -> None:
    """Refuse a run folder within a data folder: what the run writes would be read as its data."""
    for role in ROLES:
        source = getattr(config, role)
        for text in _paths(config.to_mapping()[role]["data"] if source is not None else ""):
            if text and Path(text).is_absolute() and config.output.is_relative_to(text):
                raise UserError(
                    f"output: {config.output} lies in the data of {role} ({text}), where it would "
                    "be read as images; name a folder outside"
                )


def _paths(data: Any) -> list[str]:
    """Return all that a source names, however deep."""
    if isinstance(data, Mapping):
        return [text for below in data.values() for text in _paths(below)]
    return [data] if data else []


def _check_something_is_kept(stages: tuple[Stage, ...], data: SwapData, loaded: Loaded) -> None:
    """Refuse to forget every class where a term needs what the base says of those that stay."""
    gone = {c for c, name in loaded.id2label.items() if name in loaded.forgotten}
    if len(gone | set(data.class_ids.get("forget", ()))) < data.num_base_classes:
        return
    terms = {
        f"stages.{stage.kind}.terms.{name}": term
        for stage in stages
        for name, term in stage.config.terms.items()
        if stage.forgets and term.objective in NEEDS_KEPT
    }
    if terms:
        named = ", ".join(f"{key} ({term.objective})" for key, term in terms.items())
        fixes = (
            f"--{key}.objective {_WITHOUT_KEPT[term.objective]}"
            if term.objective in _WITHOUT_KEPT
            else f"--{key}.weight 0"
            for key, term in terms.items()
        )
        raise UserError(
            f"forget: these are all {data.num_base_classes} classes of the model, so nothing is "
            f"left for {named}; leave a class, or give {' '.join(fixes)}"
        )


def _some_images(data: SwapData) -> Any:
    return next(iter(data.sets.values()))["train"].images[:1]

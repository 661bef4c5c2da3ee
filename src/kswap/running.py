"""The work of one run: extend, attach, train and score stage by stage, save; and how it goes on.

Whatever is needed to go on after a kill is in a checkpoint; whatever is left is written under a
temporary name and renamed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kswap._version import __version__
from kswap.arrays import StageArrays, write_examples, write_stage
from kswap.config import SwapConfig
from kswap.data import ImageSet, SwapData
from kswap.errors import Terminated, UserError
from kswap.evaluation import score_roles, score_sets, summary
from kswap.evaluation.examples import choose, examples_of, fit_answer
from kswap.files import digest_of
from kswap.models import adapter as adapters
from kswap.models import artefact, head, structure
from kswap.models.class_tensors import class_tensors
from kswap.models.features import Places
from kswap.models.fused import fused_adapters
from kswap.models.licence import license_of
from kswap.models.loading import Loaded
from kswap.models.margin import lower_new_rows
from kswap.models.quantised import load_quantised, quantised_linears
from kswap.models.sharding import shard
from kswap.objectives.sparsity import num_zero_groups
from kswap.objectives.units import Bank
from kswap.plan import Stage
from kswap.ranks import shards_base
from kswap.report.card import write_card
from kswap.report.figures import draw_figures
from kswap.report.page import write_report
from kswap.run_folder import RunFolder, write_results
from kswap.settings import ROLES, Role, Split
from kswap.signals import Interrupts
from kswap.tasks import Scores, Task, Teacher, View, roles_of_rows
from kswap.tasks.inside import num_slots
from kswap.training.analysis import Analysis, write_figures
from kswap.training.augment import make_change
from kswap.training.checkpoint import (
    Position,
    check_run,
    fingerprint_of,
    load_checkpoint,
    prune,
    save_checkpoint,
)
from kswap.training.dampening import dampen
from kswap.training.depth import narrowed, num_frozen_as_said, num_frozen_blocks
from kswap.training.device import peak_memory_bytes
from kswap.training.events import EventLog
from kswap.training.informing import (
    Asked,
    asked,
    bank_of,
    check_bank,
    draws,
    places_of,
    sees_without,
)
from kswap.training.loop import Trainee, enable_checkpointing, train_stage
from kswap.training.optimiser import (
    Trainables,
    load_optimiser_state,
    make_optimiser,
    optimiser_state,
)
from kswap.training.prefix_cache import CacheSettings
from kswap.training.prefixes import Prefixes
from kswap.training.preparing import prepare
from kswap.training.progress import progress
from kswap.training.streams import Source, Streams
from kswap.training.teaching import Features, answers_fit, class_means, observe, taught_roles

_NOWHERE = Places()


@dataclass
class Run:
    """The state of one run between its steps."""

    config: SwapConfig
    stages: tuple[Stage, ...]
    folder: RunFolder
    loaded: Loaded
    data: SwapData
    accelerator: Any
    interrupts: Interrupts
    on_note: Callable[[str], None]
    seconds: dict[str, float]
    task: Task
    resume_from: Path
    """Checkpoints of the process that writes them."""
    position: Position = field(default_factory=Position)
    heads: tuple[str, ...] = ()
    teach_now: bool = False
    base_features: dict[Role, Features] = field(default_factory=dict)
    asked: Asked = field(default_factory=Asked)
    bank: Bank | None = None
    num_slots: int = 0
    blocks: tuple[structure.FfnBlock, ...] = ()
    prefixes: Prefixes = field(init=False)
    whole_base: Any = None
    """Where the base is sharded, the first process's copy as it was loaded, on the CPU."""

    def __post_init__(self) -> None:
        """Say where and how much may be kept of what does not train."""
        training, data = self.config.training, self.config.data
        settings = CacheSettings(
            training.prefix_cache and not shards_base(),
            data.augment,
            training.views,
            training.eval_batch_size,
            data.memory_limit_bytes,
            training.prefix_limit_bytes,
        )
        self.prefixes = Prefixes(settings, self.folder.cache, self.on_note)

    def finish(self) -> dict[str, Any]:
        """Train what is not trained yet, save, and return the content of results.json."""
        self._check_lengths()
        fingerprint = fingerprint_of(self.loaded.model, self.data)
        tensors = self._resume(fingerprint)
        self._written([self.folder.config])
        model = self._base()
        self.heads = head.find_heads(model)
        blocks = self.blocks = structure.find_ffn_blocks(model)
        if shards_base():
            self._shard(model)
        self.asked = asked(
            self.stages, self.task, sets=self.data.sets, heads=self.heads, blocks=blocks
        )
        if self.asked.places and not self.task.units_are_images:
            self.num_slots = num_slots([splits["train"] for splits in self.data.sets.values()])
        said = num_frozen_as_said(self.stages[0], len(blocks))
        self.prefixes.begin(
            lambda: self._probe(copy.deepcopy(model)),
            self.stages[0],
            None if self.position.stages or self.data.streamed else said,
            self.data.sets,
            [block.name for block in blocks],
            views_change_answers=self.task.teacher_sees_views,
        )
        if not self.position.stages:
            self.position.stages.append(self._scored("base", model, self.data.num_base_classes))
        teachers = self._base_outputs(model)
        swapped = self._adapted(model)
        groups = adapters.adapter_groups(swapped, blocks)
        trainee = self._trainee(swapped, list(groups.values()))
        if weights := {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}:
            artefact.load_trainable_state(swapped, weights)
        for stage in self.stages[self.position.stage - 1 :]:
            self._stage(stage, trainee, swapped, teachers, tensors)
            tensors = {}
        return self._save(swapped, groups)

    def _base(self) -> Any:
        """Return the base where it trains, in what `training.base_weights` says."""
        bits = self.config.training.base_weights
        if bits == "fp32":  # one that is sharded goes to its devices part by part
            return (
                self.loaded.model
                if shards_base()
                else self.loaded.model.to(self.accelerator.device)
            )
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}
        model = load_quantised(
            self.loaded,
            bits,
            blocks=structure.find_ffn_blocks(self.loaded.model),
            device=self.accelerator.device,
            compute=half.get(self.config.training.precision, torch.float32),
        )
        count = len(quantised_linears(model))
        self.on_note(
            f"the base is held in {bits} while it trains ({count} linears); what is saved is the "
            "adapter on the base in full precision"
        )
        return model

    def _shard(self, model: Any) -> None:
        """Leave this process its part of the base, in place."""
        if self.config.training.analysis:
            raise UserError(
                "training.analysis: true looks at gradients in one process, and with "
                "distributed_type: FSDP none has the whole base; set it to false, or take MULTI_GPU"
            )
        if self.accelerator.is_main_process:
            self.whole_base = copy.deepcopy(model)
        if self.task.name == "classification":
            apart = [f"{name}.{kind}" for name in self.heads for kind in ("weight", "bias")]
        else:
            apart = [f"{one.module}.{one.name}" for one in class_tensors(model)]
        shard(
            model,
            [block.name for block in self.blocks],
            apart=apart,
            device=self.accelerator.device,
        )
        if self.config.training.prefix_cache:
            self.on_note(
                "the base is sharded (FSDP): all blocks run at every step, also those below the "
                "ones that train"
            )

    def _adapted(self, model: Any) -> Any:
        """Extend the head of a bare model, in place, and wrap it by PEFT."""
        scenes = self.task.name != "classification"
        init: Literal["random", "mean"] = (
            "mean" if scenes and self.config.head.init == "class-mean" else "random"
        )
        head.extend_head(
            model, self.data.id2label, init=init, seed=self.config.seed, heads=self.heads
        )
        swapped = adapters.attach(
            model,
            self.blocks,
            self.config.adapter,
            head_names=self.heads,
            head_train=self.config.head.train,
            seed=self.config.seed,
        )
        if self.config.head.train == "new":
            head.freeze_old_rows(
                swapped,
                self.heads,
                self.data.num_base_classes,
                num_new=len(self.data.class_ids.get("learn", ())),
            )
        return swapped

    def _probe(self, model: Any) -> Trainee:
        """Return a copy of the base as the first stage will train it."""
        probe = self._adapted(model)
        trainee = self._trainee(probe, list(adapters.adapter_groups(probe, self.blocks).values()))
        said = num_frozen_as_said(self.stages[0], len(self.blocks))
        return narrowed(trainee, said or 0)

    # ------------------------------------------------------------------------------------- resuming
    def _resume(self, fingerprint: str) -> dict[str, Tensor]:
        """Read the newest checkpoint, if any, into `position`; return its tensors."""
        found = load_checkpoint(self.resume_from)
        self.accelerator.wait_for_everyone()  # before the first process writes another
        self.position.fingerprint = fingerprint
        if found is None:
            return {}
        tensors, position, notes = found
        for note in notes:
            self.on_note(note)
        if not tensors:
            return {}
        if position.fingerprint != fingerprint:
            raise UserError(
                f"output: {self.folder.path} was begun with other images or other base "
                "weights; restore them, or name another folder"
            )
        if self.accelerator.is_main_process:
            for note in check_run(self.folder.path, position):
                self.on_note(note)
        else:
            position.events_bytes = 0  # it begins a file of its own
        self.position = position
        self.seconds = {
            **position.seconds,
            "load": position.seconds.get("load", 0) + self.seconds["load"],
        }
        self.on_note(f"going on from stage {position.stage}, step {position.step}")
        return tensors

    def _checkpoint(
        self,
        trainee: Trainee,
        events: EventLog,
        *,
        optimiser: Any = None,
        before: Mapping[str, Tensor] | None = None,
        prepared: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write a checkpoint; within a stage, with the optimiser and the adapter it began with."""
        if not self.accelerator.is_main_process:
            return
        begin = time.perf_counter()
        self.position.events_bytes = events.flush()
        self.position.events_sha256 = events.sha256
        self.position.seconds = dict(self.seconds)
        tensors = {f"model.{k}": v for k, v in artefact.trainable_state(trainee.model).items()}
        if optimiser is not None:
            tensors |= optimiser_state(optimiser, trainee.moved)
        tensors |= {f"before.{name}": tensor for name, tensor in (before or {}).items()}
        tensors |= {f"prepared.{name}": tensor for name, tensor in (prepared or {}).items()}
        if self.accelerator.scaler is not None:
            self.position.scaler = self.accelerator.scaler.state_dict()
        save_checkpoint(self.folder.checkpoints, tensors, self.position)
        self._spent("checkpoint", begin)

    # ------------------------------------------------------------------------------------- training
    def _trainee(self, model: Any, groups: list[list[torch.nn.Parameter]]) -> Trainee:
        size = self._pixels(next(iter(self.data.sets.values()))["train"].images[:1]).shape[-2:]
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        if self.config.training.gradient_checkpointing:
            enable_checkpointing(model.get_base_model())
        return Trainee(
            model=model,
            task=self.task,
            accelerator=self.accelerator,
            pixels=self._pixels,
            augment=make_change(self.config.data.augment, (size[0], size[1])),
            views={stage.name: self._view(stage) for stage in self.stages},
            teach_now=self.teach_now,
            as_base=lambda: adapters.without_adapter(model),
            base_places=self._base_places,
            groups=groups,
            moved=Trainables(
                adapter=[(n, p) for n, p in named if "lora_" in n],
                head=[(n, p) for n, p in named if "lora_" not in n],
            ),
            training=self.config.training,
            seed=self.config.seed,
        )

    def _view(self, stage: Stage) -> View:
        """Return what the classes are at a stage."""
        before = torch.zeros(self.data.num_base_classes, dtype=torch.bool)
        before[[c for c, n in self.loaded.id2label.items() if n in self.loaded.forgotten]] = True
        forgotten = before.clone()
        forgotten[list(self.data.class_ids.get("forget", ()))] = True
        roles = {role: stage.role_of(role) for role in ROLES}
        codes = {role: ROLES.index(at) for role, at in roles.items() if at is not None}
        num_rows = self._num_rows(stage.knows_learned)
        device = self.accelerator.device
        return View(
            role_of_row=roles_of_rows(self.data.class_ids, codes)[:num_rows].to(device),
            num_base=self.data.num_base_classes,
            forgotten=(forgotten if stage.forgets else before).to(device),
            places=places_of(stage, self.asked.places),
            bank=self.bank,
            num_slots=self.num_slots,
            draws=draws(stage),
            as_if_absent=sees_without(stage, self.task),
        )

    def _num_rows(self, knows_learned: bool) -> int:
        """Return how many rows of the head take part."""
        return len(self.data.id2label) if knows_learned else self.data.num_base_classes

    def _stage(
        self,
        stage: Stage,
        trainee: Trainee,
        swapped: Any,
        teachers: Mapping[Role, Teacher],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """Train one stage from where it stands, score, checkpoint."""
        sources = self._sources(stage, teachers)
        if self.position.step == 0 and self._first_to_learn(stage):
            self._initialise_rows(swapped, stage)
        events = self._events()
        done: dict[str, Any] = {}
        try:
            if stage.config.dampening is not None:
                num_steps, done = 0, {"dampening": self._dampen(stage, trainee, sources)}
            else:
                num_steps = self._trained(stage, trainee, sources, tensors, events)
            if stage.index == len(self.stages) and stage.knows_learned:
                lower_new_rows(
                    swapped,
                    self.heads,
                    num_old=self.data.num_base_classes,
                    num_new=len(self.data.class_ids["learn"]),
                    nats=self.config.head.margin,
                )
            num_rows = self._num_rows(stage.knows_learned)
            self.position.stages.append(self._scored(stage.name, swapped, num_rows) | done)
            self.position.total_steps += num_steps
            self.position.stage, self.position.step = stage.index + 1, 0
            self._checkpoint(trainee, events)
        finally:
            events.close()
            narrowed(trainee, 0)

    def _sources(self, stage: Stage, teachers: Mapping[Role, Teacher]) -> dict[Role, Source]:
        """Return the training images of each role, with what the base answers on those kept."""
        streamed, taught = self.data.streamed, taught_roles([stage], self.task)
        return {
            role: Source(
                splits["train"],
                teachers.get(role),
                streamed=streamed.get(role),
                is_untaught=role in streamed and role in taught,
            )
            for role, splits in self.data.sets.items()
        }

    def _check_lengths(self) -> None:
        """Refuse, before anything trains, streams whose length a stage needs and nobody says."""
        for stage in self.stages if self.data.streamed else ():
            sources = {role: [source] for role, source in self._sources(stage, {}).items()}
            Streams(stage, sources, seed=self.config.seed)

    def _trained(
        self,
        stage: Stage,
        trainee: Trainee,
        sources: Mapping[Role, Source],
        tensors: Mapping[str, Tensor],
        events: EventLog,
    ) -> int:
        """Do the steps of a stage, check that everything moved, and return their number."""
        swapped: Any = trainee.model
        if not self.position.step:
            self.position.streams = {}
        with (
            fused_adapters(swapped),
            Streams(
                stage,
                {role: [source] for role, source in sources.items()},
                seed=self.config.seed,
                first_step=self.position.step,
                places=self.position.streams,
            ) as streams,
        ):
            before, seconds = self._train(streams, stage, trainee, sources, tensors, events)
        begin = time.perf_counter() - seconds
        num_steps = streams.num_steps
        adapters.check_moved(before, swapped, stage=stage.name, num_steps=num_steps)
        if stage.config.negate is not None:
            adapters.negate(swapped, before, stage.config.negate)
        self._spent(f"train {stage.name}", begin)
        return num_steps

    def _dampen(
        self, stage: Stage, trainee: Trainee, sources: Mapping[Role, Source]
    ) -> dict[str, float | int]:
        """Do a stage that takes no step, and return what results.json says of it."""
        begin = time.perf_counter()
        streams = Streams(stage, {r: [s] for r, s in sources.items()}, seed=self.config.seed)
        narrow = narrowed(trainee, num_frozen_blocks(trainee, stage, streams))
        with progress(f"stage {stage.name}") as report:
            found = dampen(narrow, stage, sources, report)
        self.prefixes.drop()
        self._spent(f"train {stage.name}", begin)
        self.on_note(
            f"stage {stage.name}: {found.num_dampened:,} of {found.num_weights:,} weights are "
            f"dampened; rank {self.config.adapter.rank} holds {100 * found.kept:.1f} % of the "
            "squared norm of what that changes in the layers"
        )
        return found.record()

    def _train(
        self,
        streams: Streams,
        stage: Stage,
        trainee: Trainee,
        sources: Mapping[Role, Source],
        tensors: Mapping[str, Tensor],
        events: EventLog,
    ) -> tuple[dict[str, Tensor], float]:
        """Do the steps of a stage; return the adapter before them, and their seconds."""
        swapped: Any = trainee.model
        before = adapters.snapshot(swapped)
        if not self.position.step:
            self.position.num_frozen = num_frozen_blocks(trainee, stage, streams)
        trainee = narrowed(trainee, self.position.num_frozen)
        if self.position.step:
            prepared = {k[9:]: v for k, v in tensors.items() if k.startswith("prepared.")}
        else:
            sets = {role: source.images for role, source in sources.items()}
            prepared = prepare(trainee, stage, streams, sets)
        begin = time.perf_counter()
        with progress(f"prefix of {stage.name}") as report:
            names = [block.name for block in self.blocks]
            kept = self.prefixes.of_stage(trainee, stage, sources, names, on_batch=report)
        if kept is not None:
            streams, trainee = kept
            self._spent("prefix", begin)
        optimiser = self.accelerator.prepare(make_optimiser(trainee.moved, stage.config.optimiser))
        if self.position.step:
            before = {k[7:]: v for k, v in tensors.items() if k.startswith("before.")} or before
            load_optimiser_state(optimiser, trainee.moved, tensors)
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(self.position.scaler)
        analysis = self._analysis(swapped)

        def after_step(step: int) -> None:
            self.position.step = step
            due = step % self.config.training.checkpoint_steps == 0 and step < streams.num_steps
            stops = self._any_interrupted()
            if due or stops:
                self.position.streams = streams.places
                self._checkpoint(
                    trainee, events, optimiser=optimiser, before=before, prepared=prepared
                )
            if stops:
                raise Terminated

        begin = time.perf_counter()
        with self.interrupts.deferring(), progress(f"stage {stage.name}") as report:
            train_stage(
                trainee,
                stage,
                streams,
                optimiser,
                first_step=self.position.step,
                total_step=self.position.total_steps,
                events=events,
                after_step=after_step,
                report=report,
                analysis=analysis,
                prepared=self._on_device(prepared, before),
            )
        for note in streams.notes():
            self.on_note(f"stage {stage.name}: {note}")
        if analysis is not None:
            self._write_analysis(stage, swapped, analysis)
        return before, time.perf_counter() - begin

    def _any_interrupted(self) -> bool:
        """Whether one of the processes is to stop: all of them stop at the same step."""
        if self.accelerator.num_processes == 1:
            return self.interrupts.received
        told = torch.tensor(float(self.interrupts.received), device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, reduction="sum") > 0)

    def _on_device(
        self, prepared: Mapping[str, Tensor], before: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return what a stage was prepared with, and the values that are held, where it trains."""
        fixed = {**prepared}
        if any(name.startswith("fisher.") for name in prepared):
            fixed |= {f"anchor.{name}": tensor for name, tensor in before.items()}
        return {name: tensor.to(self.accelerator.device) for name, tensor in fixed.items()}

    def _analysis(self, swapped: Any) -> Analysis | None:
        if not self.config.training.analysis:
            return None
        if not self.position.step:
            self.position.analysis = {}
        groups = adapters.adapter_groups(swapped, self.blocks)
        every = self.config.training.analysis_steps
        return Analysis(groups, every, kept=self.position.analysis)

    def _write_analysis(self, stage: Stage, swapped: Any, analysis: Analysis) -> None:
        figures = analysis.figures(adapters.adapter_changes(swapped, self.blocks))
        path = write_figures(self.folder.path / "arrays", stage.name, figures)
        self._written([path])
        self.on_note(f"analysis of stage {stage.name}: {analysis.seconds:.1f} s, in {path}")
        self.position.analysis = {}

    def _first_to_learn(self, stage: Stage) -> bool:
        return "learn" in stage.target and not any(
            "learn" in earlier.target for earlier in self.stages[: stage.index - 1]
        )

    def _initialise_rows(self, swapped: Any, stage: Stage) -> None:
        """Start the new rows from what the model, as it is now, makes of the learn images."""
        if self.config.head.init == "random":
            return
        begin = time.perf_counter()
        sets = {role: splits["train"] for role, splits in self.data.sets.items()}
        roles = [role for role in ROLES if role in stage.active and role in sets]
        features = {
            role: self.base_features[role]
            if stage.index == 1
            else self._observe(swapped, sets[role])[1]
            for role in roles
        }
        learned = self.data.class_ids["learn"]
        for name, (means, centre) in class_means(features, learned).items():
            head.set_new_rows(
                swapped,
                name,
                num_old=self.data.num_base_classes,
                class_means=means,
                centre=centre,
                lead=self.task.new_rows_lead,
            )
        self._spent("head", begin)

    def _events(self) -> EventLog:
        on_gpu = self.accelerator.device.type != "cpu"
        events = EventLog(
            self.folder.events,
            start_bytes=self.position.events_bytes,
            flush_every=10 if on_gpu else 1,
            on_flush=lambda values, step: self.accelerator.log(dict(values), step=step),
        )
        events.open()
        return events

    # -------------------------------------------------------------------------------------- outputs
    def _pixels(self, images: Any) -> Tensor:
        pixels: Tensor = self.data.pixels(images, device=self.accelerator.device)
        return pixels

    def _base_outputs(self, model: Any) -> dict[Role, Teacher]:
        """Return the base's answers on training images of roles whose terms compare with them.

        The features of the first stage's images are kept from the same forward where that stage
        starts the new rows of the head.
        """
        begin = time.perf_counter()
        first = self.stages[0]
        needed = taught_roles(self.stages, self.task)
        sets = {role: splits["train"] for role, splits in self.data.sets.items()}
        if needed and self.task.teacher_sees_views:
            limit = self.config.data.memory_limit_bytes
            kept = [images for role, images in sets.items() if role in needed]
            self.teach_now = self.config.data.augment != "none" or not answers_fit(
                model,
                self.task,
                kept,
                self._pixels,
                limit_bytes=limit,
                places=self._base_places,
                num_slots=self.num_slots,
            )
        needed = set() if self.teach_now else needed
        starts_rows = self.config.head.init == "class-mean" and "learn" in first.target
        wanted = needed - set(self.data.streamed) | set(self.asked.roles)
        wanted |= set(first.active) if starts_rows else set()
        teachers: dict[Role, Teacher] = {}
        inside: dict[Role, dict[str, Tensor]] = {}
        for role in ROLES:
            if role in wanted and role in sets:
                with self.prefixes.answering(model, role):
                    answers, self.base_features[role], inside[role] = self._observe(
                        model, sets[role], self.asked.places
                    )
                if role in needed and role not in self.data.streamed:
                    teachers[role] = answers | (inside[role] if self.asked.own else {})
        if self.asked.roles:
            self.bank = bank_of(
                {role: inside[role] for role in self.asked.roles},
                self.data.sets,
                forget_ids=self.data.class_ids.get("forget", ()),
                num_base=self.data.num_base_classes,
                device=self.accelerator.device,
            )
            check_bank(self.bank, self.asked)
        self._spent("base outputs", begin)
        return teachers

    def _observe(
        self, model: Any, images: ImageSet, places: Places = _NOWHERE
    ) -> tuple[Teacher, Features, dict[str, Tensor]]:
        return observe(
            model,
            self.task,
            images,
            self.heads,
            self._pixels,
            batch_size=self.config.training.eval_batch_size,
            places=places,
            num_slots=self.num_slots,
            limit_bytes=self.config.data.memory_limit_bytes,
        )

    @property
    def _base_places(self) -> Places:
        """Where the base's features of units of scenes are kept."""
        asks = bool(self.asked.own) and not self.task.units_are_images
        return self.asked.places if asks else _NOWHERE

    def _scored(self, name: str, model: Any, num_rows: int) -> dict[str, Any]:
        begin = time.perf_counter()
        splits: list[Split] = ["test"]
        if self.config.training.score_validation:
            splits.append("validation")
        chosen = choose(self.data, seed=self.config.seed)
        scored = {}
        for split in splits:
            knowing = self.prefixes.scoring_base if name == "base" else self.prefixes.scoring
            with knowing(model) if split == "test" else nullcontext():
                scored[split] = score_sets(
                    model,
                    self.task,
                    self.data,
                    split=split,
                    num_rows=num_rows,
                    batch_size=self.config.training.eval_batch_size,
                    pixels=self._pixels,
                    keep=chosen if split == "test" else None,
                )
        self._keep(name, scored["test"], chosen)
        self._spent("score", begin)
        record = {"name": name, **summary(scored["test"], self.data)}
        if "validation" in scored:
            record["validation"] = summary(scored["validation"], self.data)
        return record

    def _keep(
        self, name: str, scored: Mapping[Role, Scores], chosen: Mapping[Role, Sequence[int]]
    ) -> None:
        """Write what figures and report of a stage are drawn from."""
        examples = examples_of(self.data, chosen)
        if name == "base":
            labels, unit = self.data.id2label, self.task.counts
            self._written(write_examples(self.folder.arrays, examples, labels=labels, unit=unit))
        kept = [marks for role in chosen for marks in scored[role].kept]
        answers = tuple(fit_answer(m, e) for m, e in zip(kept, examples, strict=True))
        confusion = {
            row: counts for found in scored.values() for row, counts in found.confusion.items()
        }
        self._written(write_stage(self.folder.arrays, name, StageArrays(answers, confusion)))

    def _written(self, paths: Sequence[Path]) -> None:
        """Keep the checksums of files that are not written again."""
        for path in paths:
            name = path.relative_to(self.folder.path).as_posix()
            self.position.files[name] = digest_of(path)

    def _spent(self, phase: str, begin: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begin

    # --------------------------------------------------------------------------------------- saving
    def _save(self, swapped: Any, groups: Mapping[str, Any]) -> dict[str, Any]:
        """Write adapter, merged model, model card and, last, results.json."""
        if not self.accelerator.is_main_process:
            return {}
        begin = time.perf_counter()
        if self.whole_base is not None:  # the base does not train: what trained is put on it
            trained = artefact.trainable_state(swapped)
            swapped = self._adapted(self.whole_base)
            artefact.load_trainable_state(swapped, trained)
        names: dict[Role, list[str]] = {
            role: [self.data.id2label[c] for c in self.data.class_ids.get(role, ())]
            for role in ROLES
        }
        forgotten = sorted({*self.loaded.forgotten, *names["forget"]})
        processor = self.loaded.processor
        whole, saved = self._in_full_precision(swapped)
        artefact.save_adapter(
            whole, self.folder.path / "adapter", base_name=self.loaded.source, processor=processor
        )
        artefact.save_merged(
            whole,
            self.folder.path / "model",
            processor=processor,
            kswap={
                "version": __version__,
                "learned": names["learn"],
                "forgotten": forgotten,
            },
        )
        self._spent("save", begin)
        drawn_from = {"stages": self.position.stages, "classes": names}
        self._drawn("figures/", draw_figures, drawn_from)
        self.seconds["total"] = sum(v for k, v in self.seconds.items() if k != "total")
        results = {
            "kswap_version": __version__,
            "task": self.task.name,
            "score_name": self.task.score_name,
            "seed": self.config.seed,
            "order": self.config.order,
            "preset": self.config.preset,
            "classes": names,
            "stages": self.position.stages,
            "seconds": {phase: round(value, 3) for phase, value in self.seconds.items()},
            "peak_memory_bytes": peak_memory_bytes(self.accelerator.device),
            "trainable_parameters": sum(p.numel() for p in swapped.parameters() if p.requires_grad),
            "groups": {"total": len(groups), "zero": num_zero_groups(groups.values())},
            "images": {
                role: {split: len(images) for split, images in splits.items()}
                for role, splits in self.data.sets.items()
            },
            **({"streamed": sorted(self.data.streamed)} if self.data.streamed else {}),
            "base": {
                "model": self.loaded.source,
                "license": license_of(self.loaded.source),
                "weights": self.config.training.base_weights,
            },
            **saved,
            "notes": [*self.data.notes, *self._notes_on_weights(saved)],
            "audit": {},
        }
        write_card(self.folder.path, results)
        self._drawn("report.html", write_report, results)
        prune(self.folder.checkpoints, keep=1)
        write_results(self.folder, results, anew=True)
        return results

    def _in_full_precision(self, swapped: Any) -> tuple[Any, dict[str, Any]]:
        """Return the adapter on the base that is saved, and its scores where it trained on another.

        A base in 8 or 4 bits answers otherwise than in full precision, so that the adapter on the
        latter has scores of its own, under `saved` in results.json.
        """
        if self.config.training.base_weights == "fp32":
            return swapped, {}
        begin = time.perf_counter()
        whole = self._adapted(self.loaded.model)  # on the CPU until now, its head as it came
        artefact.load_trainable_state(whole, artefact.trainable_state(swapped))
        learned = any(stage.knows_learned for stage in self.stages)
        scored = score_roles(
            artefact.merged_model(whole).to(self.accelerator.device),
            self.task,
            self.data,
            split="test",
            num_rows=self._num_rows(learned),
            batch_size=self.config.training.eval_batch_size,
            pixels=self._pixels,
        )
        self._spent("score", begin)
        return whole, {"saved": {"weights": "fp32", **scored}}

    def _notes_on_weights(self, saved: Mapping[str, Any]) -> list[str]:
        """Return what a reader of the scores has to know of what was scored."""
        if not saved:
            return []
        scores = saved["saved"]["scores"]
        said = ", ".join(f"{r} {100 * s:.1f}" for r, s in scores.items() if s is not None)
        return [
            f"the stages were trained and scored on a base held in "
            f"{self.config.training.base_weights}; adapter/ and model/ are on the base in full "
            f"precision, where the scores are: {said}"
        ]

    def _drawn(
        self, what: str, draw: Callable[[Path, Mapping[str, Any]], Any], results: Mapping[str, Any]
    ) -> None:
        """Draw; where that fails the run is still whole, and the user is told."""
        begin = time.perf_counter()
        try:
            draw(self.folder.path, results)
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk, not the drawing
                raise
            self.on_note(
                f"{what} could not be drawn ({type(error).__name__}: {error}); all else is whole, "
                "and `kswap report RUN` draws it from what was kept"
            )
        self._spent("figures", begin)

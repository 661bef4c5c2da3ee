"""The stages of a run: each trained from where it stands, scored, and kept in a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kswap.errors import Terminated
from kswap.models import adapter as adapters
from kswap.models.fused import fused_adapters
from kswap.models.margin import lower_new_rows
from kswap.plan import Stage
from kswap.running.knowledge import Knowledge
from kswap.running.resuming import checkpoint, part_of
from kswap.running.scoring import scored
from kswap.running.state import RunState
from kswap.settings import Role
from kswap.tasks import Teacher
from kswap.training.analysis import Analysis, write_figures
from kswap.training.dampening import dampen
from kswap.training.depth import narrowed, num_frozen_blocks
from kswap.training.events import EventLog
from kswap.training.loop import Trainee, train_stage
from kswap.training.optimiser import load_optimiser_state, make_optimiser
from kswap.training.preparing import prepare
from kswap.training.progress import progress
from kswap.training.streams import Source, Streams
from kswap.training.teaching import taught_roles
from kswap.training.unread_tokens import without_unread_tokens


@dataclass
class StageRunner:
    """Does the stages of a run, one after the other."""

    state: RunState
    knowledge: Knowledge
    teachers: Mapping[Role, Teacher]
    """What the base answers on the training images of a role, as far as it is kept."""

    def run(self, stage: Stage, trainee: Trainee, tensors: Mapping[str, Tensor]) -> None:
        """Train one stage from where it stands, score, checkpoint.

        Args:
            stage: the one that the position of the run is in.
            trainee: the swapped model; its blocks all train again at the end.
            tensors: of the checkpoint that the run goes on from; empty: it begins here.
        """
        state, swapped = self.state, trainee.model
        sources = _sources(state, stage, self.teachers)
        if state.position.step == 0 and self._first_to_learn(stage):
            self.knowledge.initialise_rows(swapped, stage)
        events = self._events()
        done: dict[str, Any] = {}
        try:
            if stage.config.dampening is not None:
                num_steps, done = 0, {"dampening": self._dampen(stage, trainee, sources)}
            else:
                num_steps = self._trained(stage, trainee, sources, tensors, events)
            if stage.index == len(state.stages) and stage.knows_learned:
                lower_new_rows(
                    swapped,
                    state.heads,
                    num_old=state.data.num_base_classes,
                    num_new=len(state.data.class_ids["learn"]),
                    nats=state.config.head.margin,
                )
            num_rows = state.num_rows(stage.knows_learned)
            state.position.stages.append(scored(state, stage.name, swapped, num_rows) | done)
            state.position.total_steps += num_steps
            state.position.stage, state.position.step = stage.index + 1, 0
            checkpoint(state, trainee, events)
        finally:
            events.close()
            narrowed(trainee, 0)

    def _trained(
        self,
        stage: Stage,
        trainee: Trainee,
        sources: Mapping[Role, Source],
        tensors: Mapping[str, Tensor],
        events: EventLog,
    ) -> int:
        """Do the steps of a stage, check that everything moved, and return their number."""
        state = self.state
        swapped: Any = trainee.model
        if not state.position.step:
            state.position.streams = {}
        with (
            fused_adapters(swapped),
            Streams(
                stage,
                {role: [source] for role, source in sources.items()},
                seed=state.config.seed,
                first_step=state.position.step,
                places=state.position.streams,
            ) as streams,
        ):
            before, seconds = self._train(streams, stage, trainee, sources, tensors, events)
        begin = time.perf_counter() - seconds
        num_steps = streams.num_steps
        adapters.check_moved(before, swapped, stage=stage.name, num_steps=num_steps)
        if stage.config.negate is not None:
            adapters.negate(swapped, before, stage.config.negate)
        state.spent(f"train {stage.name}", begin)
        return num_steps

    def _dampen(
        self, stage: Stage, trainee: Trainee, sources: Mapping[Role, Source]
    ) -> dict[str, float | int]:
        """Do a stage that takes no step, and return what results.json says of it."""
        state = self.state
        begin = time.perf_counter()
        streams = Streams(stage, {r: [s] for r, s in sources.items()}, seed=state.config.seed)
        narrow = narrowed(trainee, num_frozen_blocks(trainee, stage, streams))
        with progress(f"stage {stage.name}") as report:
            found = dampen(narrow, stage, sources, report)
        state.prefixes.drop()
        state.spent(f"train {stage.name}", begin)
        state.on_note(
            f"stage {stage.name}: {found.num_dampened:,} of {found.num_weights:,} weights are "
            f"dampened; rank {state.config.adapter.rank} holds {100 * found.kept:.1f} % of the "
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
        state = self.state
        swapped: Any = trainee.model
        before = adapters.snapshot(swapped)
        if not state.position.step:
            state.position.num_frozen = num_frozen_blocks(trainee, stage, streams)
        trainee = narrowed(trainee, state.position.num_frozen)
        sets = {role: source.images for role, source in sources.items()}
        if state.position.step:
            prepared = part_of(tensors, "prepared")
        else:
            prepared = prepare(trainee, stage, streams, sets)
        trainee = without_unread_tokens(trainee, stage, sets, state.blocks[-1])
        begin = time.perf_counter()
        with progress(f"prefix of {stage.name}") as report:
            names = [block.name for block in state.blocks]
            kept = state.prefixes.of_stage(trainee, stage, sources, names, on_batch=report)
        if kept is not None:
            streams, trainee = kept
            state.spent("prefix", begin)
        optimiser = state.accelerator.prepare(make_optimiser(trainee.moved, stage.config.optimiser))
        if state.position.step:
            before = part_of(tensors, "before") or before
            load_optimiser_state(optimiser, trainee.moved, tensors)
            if state.accelerator.scaler is not None:
                state.accelerator.scaler.load_state_dict(state.position.scaler)
        analysis = self._analysis(swapped)
        renewal = self.knowledge.renewal(swapped, stage, part_of(tensors, "frames"))

        def after_step(step: int) -> None:
            state.position.step = step
            due = step % state.config.training.checkpoint_steps == 0 and step < streams.num_steps
            stops = self._any_interrupted()
            if due or stops:
                state.position.streams = streams.places
                checkpoint(
                    state,
                    trainee,
                    events,
                    optimiser=optimiser,
                    before=before,
                    prepared=prepared,
                    frames=None if renewal is None else renewal.tensors(),
                )
            if stops:
                raise Terminated

        begin = time.perf_counter()
        with state.interrupts.deferring(), progress(f"stage {stage.name}") as report:
            train_stage(
                trainee,
                stage,
                streams,
                optimiser,
                first_step=state.position.step,
                total_step=state.position.total_steps,
                events=events,
                after_step=after_step,
                report=report,
                analysis=analysis,
                prepared=self._on_device(prepared, before),
                renewal=renewal,
            )
        for note in streams.notes():
            state.on_note(f"stage {stage.name}: {note}")
        if analysis is not None:
            self._write_analysis(stage, swapped, analysis)
        return before, time.perf_counter() - begin

    def _any_interrupted(self) -> bool:
        """Whether one of the processes is to stop: all of them stop at the same step."""
        state = self.state
        if state.accelerator.num_processes == 1:
            return state.interrupts.received
        told = torch.tensor(float(state.interrupts.received), device=state.accelerator.device)
        return bool(state.accelerator.reduce(told, reduction="sum") > 0)

    def _on_device(
        self, prepared: Mapping[str, Tensor], before: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return what a stage was prepared with, and the values that are held, where it trains."""
        fixed = {**prepared}
        if any(name.startswith("fisher.") for name in prepared):
            fixed |= {f"anchor.{name}": tensor for name, tensor in before.items()}
        return {name: tensor.to(self.state.accelerator.device) for name, tensor in fixed.items()}

    def _analysis(self, swapped: Any) -> Analysis | None:
        state = self.state
        if not state.config.training.analysis:
            return None
        if not state.position.step:
            state.position.analysis = {}
        groups = adapters.adapter_groups(swapped, state.blocks)
        every = state.config.training.analysis_steps
        return Analysis(groups, every, kept=state.position.analysis)

    def _write_analysis(self, stage: Stage, swapped: Any, analysis: Analysis) -> None:
        state = self.state
        figures = analysis.figures(adapters.adapter_changes(swapped, state.blocks))
        path = write_figures(state.folder.path / "arrays", stage.name, figures)
        state.written([path])
        state.on_note(f"analysis of stage {stage.name}: {analysis.seconds:.1f} s, in {path}")
        state.position.analysis = {}

    def _first_to_learn(self, stage: Stage) -> bool:
        return "learn" in stage.target and not any(
            "learn" in earlier.target for earlier in self.state.stages[: stage.index - 1]
        )

    def _events(self) -> EventLog:
        state = self.state
        on_gpu = state.accelerator.device.type != "cpu"
        events = EventLog(
            state.folder.events,
            start_bytes=state.position.events_bytes,
            flush_every=10 if on_gpu else 1,
            on_flush=lambda values, step: state.accelerator.log(dict(values), step=step),
        )
        events.open()
        return events


def check_lengths(state: RunState) -> None:
    """Refuse, before anything trains, streams whose length a stage needs and nobody says.

    Raises:
        UserError: such a stream.
    """
    for stage in state.stages if state.data.streamed else ():
        sources = {role: [source] for role, source in _sources(state, stage, {}).items()}
        Streams(stage, sources, seed=state.config.seed)


def _sources(state: RunState, stage: Stage, teachers: Mapping[Role, Teacher]) -> dict[Role, Source]:
    """Return the training images of each role, with what the base answers on those kept."""
    streamed, taught = state.data.streamed, taught_roles([stage], state.task)
    return {
        role: Source(
            splits["train"],
            teachers.get(role),
            streamed=streamed.get(role),
            is_untaught=role in streamed and role in taught and not state.task.teacher_sees_views,
        )
        for role, splits in state.data.sets.items()
    }

"""What the base makes of the training images: for terms that compare with it, and new rows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kswap.data import ImageSet
from kswap.data.sets import subset
from kswap.models import head
from kswap.models.features import Places
from kswap.objectives.units import Bank, Frame
from kswap.plan import Stage
from kswap.running.state import RunState
from kswap.settings import ROLES, Role, Split
from kswap.tasks import Teacher, View, roles_of_rows
from kswap.tasks.inside import UNIT_IDS, num_slots
from kswap.training.informing import (
    Asked,
    asked,
    bank_of,
    check_bank,
    draws,
    places_of,
    sees_without,
    some_of_each,
)
from kswap.training.renewal import Renewal, frames_from, frames_of, renewed_places
from kswap.training.teaching import Features, answers_fit, class_means, observe, taught_roles

_NOWHERE = Places()
_PER_CLASS, _IN_ALL = 64, 2048
"""Images of a retained class, and about how many in all, that are looked at when frames are
renewed, by a forward each."""


@dataclass
class Knowledge:
    """The base's answers and features on training images, as far as the stages ask for them."""

    state: RunState
    asked: Asked = field(init=False)
    num_slots: int = 0
    teach_now: bool = False
    """Whether the base answers at every step (its answers are needed and not kept)."""
    base_features: dict[Role, Features] = field(default_factory=dict)
    bank: Bank | None = None

    def __post_init__(self) -> None:
        """Say what the stages ask for."""
        state = self.state
        sets = state.data.sets
        self.asked = asked(
            state.stages, state.task, sets=sets, heads=state.heads, blocks=state.blocks
        )
        if self.asked.places and not state.task.units_are_images:
            self.num_slots = num_slots([splits["train"] for splits in sets.values()])

    def answers(self, model: Any) -> dict[Role, Teacher]:
        """Return the base's answers on training images of roles whose terms compare with them.

        The features of the first stage's images are kept from the same forward where that stage
        starts the new rows of the head.
        """
        state = self.state
        begin = time.perf_counter()
        first = state.stages[0]
        needed = taught_roles(state.stages, state.task)
        sets = {role: splits["train"] for role, splits in state.data.sets.items()}
        if needed and state.task.teacher_sees_views:
            limit = state.config.data.memory_limit_bytes
            kept = [images for role, images in sets.items() if role in needed]
            is_fixed = state.config.data.augment == "none" and not state.data.streamed
            self.teach_now = not is_fixed or not answers_fit(
                model,
                state.task,
                kept,
                state.pixels,
                limit_bytes=limit,
                places=self.places,
                num_slots=self.num_slots,
            )
        needed = set() if self.teach_now else needed
        starts_rows = state.config.head.init == "class-mean" and "learn" in first.target
        wanted = needed - set(state.data.streamed) | set(self.asked.roles)
        wanted |= set(first.active) if starts_rows else set()
        teachers: dict[Role, Teacher] = {}
        inside: dict[Role, dict[str, Tensor]] = {}
        for role in ROLES:
            if role in wanted and role in sets:
                with state.prefixes.answering(model, role):
                    answers, self.base_features[role], inside[role] = self._observe(
                        model, sets[role], self.asked.places
                    )
                if role in needed and role not in state.data.streamed:
                    teachers[role] = answers | (inside[role] if self.asked.own else {})
        if self.asked.roles:
            self.bank = bank_of(
                {role: inside[role] for role in self.asked.roles},
                state.data.sets,
                forget_ids=state.data.class_ids.get("forget", ()),
                num_base=state.data.num_base_classes,
                device=state.accelerator.device,
            )
            check_bank(self.bank, self.asked)
        state.spent("base outputs", begin)
        return teachers

    def _observe(
        self, model: Any, images: ImageSet, places: Places = _NOWHERE
    ) -> tuple[Teacher, Features, dict[str, Tensor]]:
        state = self.state
        return observe(
            model,
            state.task,
            images,
            state.heads,
            state.pixels,
            batch_size=state.config.training.eval_batch_size,
            places=places,
            num_slots=self.num_slots,
            limit_bytes=state.config.data.memory_limit_bytes,
        )

    @property
    def places(self) -> Places:
        """Where the base's features of units of scenes are kept."""
        asks = bool(self.asked.own) and not self.state.task.units_are_images
        return self.asked.places if asks else _NOWHERE

    def view(self, stage: Stage) -> View:
        """Return what the classes are at a stage."""
        state = self.state
        before = torch.zeros(state.data.num_base_classes, dtype=torch.bool)
        before[[c for c, n in state.loaded.id2label.items() if n in state.loaded.forgotten]] = True
        forgotten = before.clone()
        forgotten[list(state.data.class_ids.get("forget", ()))] = True
        roles = {role: stage.role_of(role) for role in ROLES}
        codes = {role: ROLES.index(at) for role, at in roles.items() if at is not None}
        num_rows = state.num_rows(stage.knows_learned)
        device = state.accelerator.device
        return View(
            role_of_row=roles_of_rows(state.data.class_ids, codes, num_rows).to(device),
            num_base=state.data.num_base_classes,
            forgotten=(forgotten if stage.forgets else before).to(device),
            places=places_of(stage, self.asked.places),
            bank=self.bank,
            num_slots=self.num_slots,
            draws=draws(stage),
            as_if_absent=sees_without(stage, state.task),
        )

    def renewal(self, swapped: Any, stage: Stage, kept: Mapping[str, Tensor]) -> Renewal | None:
        """Return what looks at the model while a stage trains; None: no term asks.

        Args:
            swapped: the model that trains.
            stage: the stage.
            kept: frames of the checkpoint that the run goes on from; empty where it begins here.
        """
        state, every, bank = self.state, stage.config.renew_steps, self.bank
        if not every or bank is None:
            return None
        places = renewed_places(stage.config, bank, self.asked.places.num_blocks)
        if not places:
            return None
        some: dict[Role, dict[Split, ImageSet]] = {}
        retained: tuple[Role, ...] = ("retain",)
        for role in retained if "retain" in self.asked.roles else self.asked.roles:
            images = state.data.sets[role]["train"]
            class_ids = torch.from_numpy(images.class_ids)
            most = min(_PER_CLASS, max(_IN_ALL // len(torch.unique(class_ids)), 2))
            some[role] = {"train": subset(images, some_of_each(class_ids, most).numpy())}

        def look() -> dict[str, Frame]:
            found = {}
            for role, splits in some.items():
                seen = self._observe(swapped, splits["train"], self.asked.places)[2]
                found[role] = {n: rows for n, rows in seen.items() if n in {UNIT_IDS, *places}}
            now = bank_of(
                found,
                some,
                forget_ids=state.data.class_ids.get("forget", ()),
                num_base=state.data.num_base_classes,
                device=state.accelerator.device,
            )
            return frames_of(now, places)

        return Renewal(every, look, frames_from(kept, state.accelerator.device))

    def initialise_rows(self, swapped: Any, stage: Stage) -> None:
        """Start the new rows from what the model, as it is now, makes of the learn images."""
        state = self.state
        if state.config.head.init == "random":
            return
        begin = time.perf_counter()
        sets = {role: splits["train"] for role, splits in state.data.sets.items()}
        roles = [role for role in ROLES if role in stage.active and role in sets]
        features = {
            role: self.base_features[role]
            if stage.index == 1
            else self._observe(swapped, sets[role])[1]
            for role in roles
        }
        learned = state.data.class_ids["learn"]
        for name, (means, centre) in class_means(features, learned).items():
            head.set_new_rows(
                swapped,
                name,
                num_old=state.data.num_base_classes,
                class_means=means,
                centre=centre,
                lead=state.task.new_rows_lead,
            )
        state.spent("head", begin)

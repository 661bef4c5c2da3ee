"""What a model makes of the images: the one form in which every audit sees every model and task.

A unit is what has a class: an image; an annotated object; the region of a class in an image. Logits
are over the rows of the run's extended head, whatever order the model's own head has, and one
column for "nothing" behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kswap.audits.findings import Cell, Interval, Status
from kswap.audits.statistics import softmax
from kswap.settings import ROLES, Role, Split

SubjectName = Literal["base", "swapped", "reference"]
ReferenceLevel = Literal["R1", "R2", "R3"]

LEAST_TESTS = 8
"""Test units of forget that a pass needs. Where all n agree, differences of up to −ln(α) / n stay
within a 1 − α interval (rule of three): at the α of seventy layers or ways that are read together,
no difference would show with fewer."""


@dataclass(frozen=True)
class Answers:
    """What one model makes of the units of one role and split; rows belong together."""

    layers: Mapping[str, NDArray[np.float32]]
    """Layer -> (units, size). The last one is what the head receives."""
    logits: NDArray[np.float32]
    """(units, rows + 1): rows of the run, −inf for rows the model lacks; last: "nothing"."""
    class_ids: NDArray[np.int64]
    """(units,), rows of the run."""
    found: NDArray[np.bool_]
    """(units,): detection: whether a box of the model overlaps the object by half; else true."""
    images: NDArray[np.int64]
    """(units,): the image within the set."""
    scores: Any = None
    """`kswap.tasks.Scores` over the images, of the task's own number."""
    leave_out: Callable[[], Sequence[Any]] = tuple
    """Computes `without`, which A1 alone asks for."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Counts that only a task has, by name."""

    def __len__(self) -> int:
        """Return the number of units."""
        return len(self.class_ids)

    @cached_property
    def without(self) -> Sequence[Any]:
        """`scores` without each of a few groups of images; empty where a unit is an image."""
        return self.leave_out()

    def shares(self) -> NDArray[np.float64]:
        """Return probabilities (units, rows + 1)."""
        return softmax(self.logits)

    def hits(self) -> NDArray[np.bool_]:
        """Return whether each unit is found and answered by its own class."""
        return np.asarray((self.logits.argmax(-1) == self.class_ids) & self.found)


@dataclass(frozen=True)
class Subject:
    """One of the three models, by what it answers."""

    name: SubjectName
    answers: Mapping[Role, Mapping[Split, Answers]]
    head: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """Weight (rows, size) and bias (rows,) in rows of the run, NaN where the model lacks a row;
    None where logits are not a linear function of the last layer."""

    def of(self, role: Role, split: Split) -> Answers | None:
        """Return the answers on a set; None where there are none."""
        answers = self.answers.get(role, {}).get(split)
        return answers if answers is not None and len(answers) else None


@dataclass(frozen=True)
class EarlierClass:
    """A class that an earlier swap forgot: it has a row, but no role in this run."""

    name: str
    images: int
    """Test images of it that were found."""
    base: Cell | Interval
    swapped: Cell | Interval


@dataclass(frozen=True)
class Case:
    """All that an audit is given."""

    task: str
    names: Mapping[int, str]
    """Row -> class name."""
    class_ids: Mapping[Role, Sequence[int]]
    """Classes of each role that have images."""
    base: Subject
    swapped: Subject
    reference: Subject | None
    """Never saw the forget data. Without such a model (R3): the base, asked of the classes to
    learn, which no stage before it saw, in the place of the forgotten ones; None: neither."""
    reference_level: ReferenceLevel
    seed: int
    valid: bool = True
    """Whether the reference can be compared with."""
    earlier: tuple[EarlierClass, ...] = ()

    @property
    def subjects(self) -> dict[str, Subject]:
        """The models by name, in the order of tables."""
        there = {"base": self.base, "swapped": self.swapped}
        return there if self.reference is None else {**there, "reference": self.reference}

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles that have classes with images."""
        return tuple(role for role in ROLES if self.class_ids.get(role))

    @property
    def decides(self) -> bool:
        """Whether a comparison with the reference can pass or fail an audit."""
        return self.reference is not None and self.reference_level != "R3" and self.valid

    def column(self, subject: str) -> str:
        """Return the heading of a model's column: the reference's says its level."""
        if subject != "reference":
            return subject
        kind = "control" if self.reference_level == "R3" else "reference"
        return f"{kind} {self.reference_level}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the models' columns."""
        return tuple(map(self.column, self.subjects))

    def status(self, *, failed: bool) -> Status:
        """Return the status of a comparison with the reference."""
        return ("fail" if failed else "pass") if self.decides else "info"

    def decision(self, reason: str, *, failed: bool) -> tuple[Status, str]:
        """Return the status of a comparison on forget-test units, and its reason.

        What a few units cannot show is not passed.
        """
        status = self.status(failed=failed)
        tests = self.swapped.of("forget", "test")
        count = 0 if tests is None else len(tests)
        if status == "pass" and count < LEAST_TESTS:
            return "not available", (
                f"{reason}, on {count} test units of forget: with fewer than {LEAST_TESTS} no "
                "difference, however large, would be beyond chance"
            )
        return status, reason

    def without_decision(self) -> str:
        """Return what a reason says where nothing is decided."""
        if self.reference is None:
            return "no reference and no class that no stage saw: nothing to compare with"
        if self.reference_level == "R3":
            return (
                "no reference: the control is the base asked of the classes to learn, which it "
                "never saw; other classes, so this decides nothing"
            )
        return "the reference is not valid, so this decides nothing"

    @property
    def forgets(self) -> bool:
        """Whether there are classes to forget, with images."""
        return bool(self.class_ids.get("forget"))


def control_of(base: Subject) -> Subject | None:
    """Return the control of a run without a reference: the base, on classes that it never saw."""
    learned = base.answers.get("learn", {})
    if not {"train", "test"} <= set(learned):
        return None
    return Subject(
        "reference", {"forget": learned, "retain": base.answers.get("retain", {})}, base.head
    )


NO_FORGET = "the run forgets nothing"

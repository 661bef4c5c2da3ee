"""A7: how fast does it come back? Forget scores over a few steps of training, beside the reference.

Whatever trains, the rows of forgotten classes are taken out of the head and new ones begin, in the
swapped model as in the reference, which never had any: what is compared is what is left elsewhere.
Only "retain only" keeps the swapped model's rows, as it asks for a relapse. "Same LoRA" goes on
with the run's own adapter, taken out of the merged weights again; a reference has none and takes a
new one. Fixed steps and rates; three draws of images. A condition stops the ladder where the area
under the swapped model's curve is larger than under the reference's, beyond the spread of the
draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from kswap.audits.findings import Cell, Curve, Finding, Interval, Table, missing, not_available
from kswap.audits.probe import lacking, moments
from kswap.audits.scores import KEPT_SHARE
from kswap.audits.statistics import t_interval
from kswap.audits.subjects import NO_FORGET, Case, Subject, SubjectName

TITLE = "Relearning"
QUESTION = "How fast does it come back?"
DRAWS = 3
_MARGIN = 0.05
_HEAD_STEPS = 60
_HEAD_EVERY = 5
_HEAD_RATE = 1e-2
RETAIN_ONLY = "retain only"


@dataclass(frozen=True)
class Condition:
    """What is trained on what."""

    data: str
    """retain only, 1 % / 5 % / 10 % of forget, the classes to learn, noise."""
    trains: str
    """head (on features), new LoRA, same LoRA, all."""

    @property
    def share(self) -> float:
        """The part of the forget-train images that is used."""
        return float(self.data.split()[0]) / 100 if "%" in self.data else 0.0

    @property
    def name(self) -> str:
        """How tables name it."""
        return f"{self.trains}, {self.data}"


@dataclass(frozen=True)
class Course:
    """Scores while a model relearns."""

    steps: tuple[int, ...]
    forget: tuple[float, ...]
    retain: tuple[float, ...]

    @property
    def area(self) -> float:
        """Mean forget score over the steps after the first."""
        return float(np.mean(self.forget[1:])) if len(self.forget) > 1 else self.forget[0]


Relearn = Callable[[Condition, SubjectName, int], Course]
"""Trains a model (the draw is the last argument) and returns how it went."""

LEARN_SET = "the classes to learn"
_SHARES = ("1 % of forget", "5 % of forget", "10 % of forget")
QUICK_HEAD = tuple(Condition(data, "head") for data in (RETAIN_ONLY, *_SHARES))
STANDARD = (*QUICK_HEAD, Condition("10 % of forget", "new LoRA"))
STRICT = (
    *STANDARD,
    *(Condition(data, "new LoRA") for data in (RETAIN_ONLY, *_SHARES[:2], LEARN_SET, "noise")),
    Condition("10 % of forget", "all"),
    Condition("10 % of forget", "same LoRA"),
)


def audit(
    case: Case,
    relearn: Relearn,
    conditions: Sequence[Condition],
    *,
    without: Mapping[str, str] | None = None,
) -> Finding:
    """Let the swapped model and the reference relearn under every condition.

    Args:
        case: the models.
        relearn: trains one.
        conditions: what is trained on what.
        without: what cannot be trained ("same LoRA"), or not on what -> why.
    """
    without = without or {}
    if not case.forgets:
        return missing(TITLE, QUESTION, NO_FORGET)
    if why := lacking(case.swapped):
        return missing(TITLE, QUESTION, why)
    base = case.base.of("forget", "test")
    assert base is not None
    goal = float(base.scores.total)
    names: list[SubjectName] = ["swapped"]
    if case.reference is not None and case.reference_level != "R3":
        names.append("reference")
    table = Table(
        f"Relearning; {DRAWS} draws; area: mean forget score over the steps",
        (
            "condition",
            *(
                f"{what}, {case.column(name)}"
                for name in names
                for what in ("forget at the end", "steps to 50 %", "steps to 95 %")
            ),
            "retain at the end, swapped",
            f"ratio of areas to the {case.column('reference')}",
        ),
    )
    curves, stopped, values = [], [], dict[str, Any]()
    for condition in conditions:
        if because := without.get(condition.trains) or without.get(condition.data):
            cells = [not_available(because)] * (len(table.columns) - 1)
            table.rows.append([condition.name, *cells])
            continue
        # a reference has no rows that a relapse could fill
        asked = names if condition.share else names[:1]
        courses = {n: [relearn(condition, n, draw) for draw in range(DRAWS)] for n in asked}
        table.rows.append(_row(condition, courses, names, goal))
        curves.append(_curve(case, condition, courses))
        areas = {n: [course.area for course in of] for n, of in courses.items()}
        values[condition.name] = {n: t_interval(of) for n, of in areas.items()}
        if _comes_back(condition, courses, areas, goal):
            stopped.append(condition.name)
    reason = (
        f"comes back faster than in the reference: {', '.join(stopped)}"
        if stopped
        else f"under none of {len(values)} conditions faster than the reference"
    )
    if not case.decides:
        reason = case.without_decision()
    status, reason = case.decision(reason, failed=bool(stopped))
    return Finding(TITLE, QUESTION, status, reason, (table,), tuple(curves), values)


def _comes_back(
    condition: Condition,
    courses: dict[SubjectName, list[Course]],
    areas: dict[SubjectName, list[float]],
    goal: float,
) -> bool:
    if not condition.share:
        ends = [max(course.forget[1:], default=0.0) for course in courses["swapped"]]
        return float(np.mean(ends)) > KEPT_SHARE * goal
    if "reference" not in areas:
        return False
    gap = t_interval([a - b for a, b in zip(areas["swapped"], areas["reference"], strict=True)])
    return gap.above(_MARGIN)


def _row(
    condition: Condition,
    courses: dict[SubjectName, list[Course]],
    names: Sequence[SubjectName],
    goal: float,
) -> list[Cell | Interval]:
    row: list[Cell | Interval] = [condition.name]
    for name in names:
        of = courses.get(name)
        if of is None:
            row += [not_available("it has no rows to relapse to")] * 3
            continue
        row.append(t_interval([course.forget[-1] for course in of]))
        row += [_steps_to(of, share * goal) for share in (0.5, 0.95)]
    row.append(t_interval([course.retain[-1] for course in courses["swapped"]]))
    ours, theirs = (
        float(np.mean([course.area for course in courses[name]])) if name in courses else None
        for name in ("swapped", "reference")
    )
    if theirs is None:
        row.append(not_available("no reference to compare with"))
    elif theirs < 0.01:
        row.append(not_available("the reference's area is 0"))
    else:
        row.append((ours or 0.0) / theirs)
    return row


def _steps_to(courses: Sequence[Course], goal: float) -> Cell:
    """Return the median over draws of the first step at which the score reaches a goal."""
    first = [
        next((s for s, score in zip(c.steps, c.forget, strict=True) if score >= goal), None)
        for c in courses
    ]
    reached = [step for step in first if step is not None]
    if len(reached) <= len(first) / 2:
        return f"not within {courses[0].steps[-1]}"
    return float(np.median(reached))


def _curve(case: Case, condition: Condition, courses: dict[SubjectName, list[Course]]) -> Curve:
    series: dict[str, list[float | None]] = {
        name: [float(np.mean(scores)) for scores in zip(*(c.forget for c in of), strict=True)]
        for name, of in courses.items()
    }
    base = case.base.of("forget", "test")
    assert base is not None
    steps = courses["swapped"][0].steps
    series["base"] = [float(base.scores.total)] * len(steps)
    return Curve(
        f"Relearning: {condition.name}", "step", "forget score", [float(s) for s in steps], series
    )


def relearn_head(
    subject: Subject, condition: Condition, *, seed: int, draw: int, num_forget: int
) -> Course:
    """Train the head on features that do not change; rows of forgotten classes begin at 0.

    Args:
        subject: with train and test features of forget and retain.
        condition: what is trained on.
        seed: of the audit.
        draw: which draw of forget images.
        num_forget: forget-train images of the run, of which the condition takes a share.
    """
    answers = {
        (role, split): subject.of(role, split)
        for role in ("forget", "retain")
        for split in ("train", "test")
    }
    assert all(some is not None for some in answers.values())
    layer = list(answers["forget", "test"].layers)[-1]  # type: ignore[union-attr]

    def part(role: str, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        some = answers[role, split]
        assert some is not None
        return some.layers[layer], some.class_ids

    x_forget, y_forget = part("forget", "train")
    x, y = part("retain", "train")
    forgotten = np.unique(y_forget)
    if condition.share:
        rows = draw_rows(y_forget, condition.share, num_forget, seed=seed, draw=draw)
        x, y = np.concatenate([x, x_forget[rows]]), np.concatenate([y, y_forget[rows]])
    mean, spread = moments(x)
    num_rows = answers["forget", "test"].logits.shape[1] - 1  # type: ignore[union-attr]
    weight, bias, lacks = _start(subject, x.shape[1], num_rows)
    fresh = np.isin(np.arange(len(bias)), forgotten) if condition.share else lacks
    weight[fresh], bias[fresh] = 0.0, bias[~lacks].mean() if (~lacks).any() else 0.0
    offset = bias + weight @ mean
    barred = lacks & ~np.isin(np.arange(len(bias)), y)
    parameters = [
        torch.tensor(weight * spread, dtype=torch.float32, requires_grad=True),
        torch.tensor(offset, dtype=torch.float32, requires_grad=True),
    ]
    penalty = torch.where(torch.from_numpy(barred), -torch.inf, 0.0)
    optimiser = torch.optim.Adam(parameters, lr=_HEAD_RATE)
    inputs, targets = torch.from_numpy((x - mean) / spread).float(), torch.from_numpy(y)
    counts = torch.bincount(targets, minlength=len(bias)).clamp_min(1).float()
    balance = (1 / counts)[targets]
    tests = {}
    for role in ("forget", "retain"):
        x_test, y_test = part(role, "test")
        tests[role] = torch.from_numpy((x_test - mean) / spread).float(), y_test
    steps, scores = [], []
    for step in range(_HEAD_STEPS + 1):
        if step % _HEAD_EVERY == 0:
            steps.append(step)
            scores.append([_score(parameters, penalty, *tests[r]) for r in ("forget", "retain")])
        logits = inputs @ parameters[0].T + parameters[1] + penalty
        loss = (functional.cross_entropy(logits, targets, reduction="none") * balance).sum()
        optimiser.zero_grad()
        (loss / balance.sum()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    forget, retain = zip(*scores, strict=True)
    return Course(tuple(steps), forget, retain)


def draw_rows(
    class_ids: NDArray[np.int64], share: float, total: int, *, seed: int, draw: int
) -> NDArray[np.int64]:
    """Return rows of `share` of `total` images, the same number of each class, at least one."""
    classes = np.unique(class_ids)
    each = max(1, round(share * total / len(classes)))
    rng = np.random.default_rng([seed, draw])
    return np.concatenate([rng.permutation(np.flatnonzero(class_ids == c))[:each] for c in classes])


def _start(
    subject: Subject, size: int, rows: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return the head that training starts from, and the rows that it lacks."""
    if subject.head is None:
        return np.zeros((rows, size)), np.zeros(rows), np.ones(rows, bool)
    weight, bias = subject.head[0].copy(), subject.head[1].copy()
    lacks = ~np.isfinite(bias)
    weight[lacks], bias[lacks] = 0.0, 0.0
    return weight, bias, lacks


@torch.no_grad()
def _score(
    parameters: Sequence[torch.Tensor],
    penalty: torch.Tensor,
    x: torch.Tensor,
    y: NDArray[np.int64],
) -> float:
    answers = (x @ parameters[0].T + parameters[1] + penalty).argmax(1).numpy()
    return float((answers == y).mean())

"""A6: do a few pictures bring it back? Restoring forgotten classes from the features alone.

On what the head receives: nearest neighbours (20, cosine); nearest class mean, the forgotten
classes' means from 1, 5 and 20 images; the head's rows of forgotten classes replaced by a·row of
the class mean + (1 − a)·old (`models.rows.class_mean_rows`); the head refitted from 1, 5 and 20
images, its regularisation chosen on validation units. A backbone that never saw the classes
restores them too, so the reference is what counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from kswap.audits.findings import Cell, Finding, Interval, Table, missing
from kswap.audits.probe import (
    MARGIN,
    REGULARISATIONS,
    balanced,
    fit,
    lacking,
    moments,
    training_units,
)
from kswap.audits.statistics import difference, share_interval, t_interval
from kswap.audits.subjects import NO_FORGET, Case, Subject
from kswap.models.rows import class_mean_rows

TITLE = "Few-shot restore"
QUESTION = "Do a few pictures bring it back?"
SHOTS = (1, 5, 20)
DRAWS = 5
_REFITS = 3
_NEIGHBOURS = 20
_SHARES = (0.5, 0.8, 1.0)
_HEAD_SHOTS = 5

Hits = tuple[list[NDArray[np.bool_]], list[NDArray[np.bool_]]]
"""By draw: of each test unit of forget, and of retain, whether it is right."""
_Answer = Callable[[NDArray[Any]], NDArray[np.int64]]


def audit(case: Case) -> Finding:
    """Restore the forgotten classes in every model."""
    if not case.forgets:
        return missing(TITLE, QUESTION, NO_FORGET)
    if why := lacking(case.swapped):
        return missing(TITLE, QUESTION, why)
    restored = {
        name: restore(subject, seed=case.seed)
        for name, subject in case.subjects.items()
        if not lacking(subject)
    }
    methods = [m for m in restored["swapped"] if all(m in of for of in restored.values())]
    table = Table(
        f"Score after restoring, test, {DRAWS} draws of the images",
        (
            "method",
            *(f"forget, {case.column(name)}" for name in restored),
            *(f"retain, {case.column(name)}" for name in restored),
        ),
    )
    excess: dict[str, Interval] = {}
    for method in methods:
        hits = {name: of[method] for name, of in restored.items()}
        table.rows.append(
            [method, *(_score(h, 0) for h in hits.values()), *(_score(h, 1) for h in hits.values())]
        )
        if "reference" in hits:
            excess[method] = difference(
                np.mean(hits["swapped"][0], 0),
                np.mean(hits["reference"][0], 0),
                num_tests=len(methods),
            )
    over = [m for m, gap in excess.items() if gap.above(MARGIN)]
    if not case.decides:
        reason = case.without_decision()
    elif over:
        worst = max(over, key=lambda method: excess[method].mean)
        reason = (
            f"{len(over)} of {len(methods)} ways restore more than from the reference, most: "
            f"{worst} (by {excess[worst].mean:.3f})"
        )
    else:
        reason = f"none of {len(methods)} ways restores more than from the reference"
    values = {
        method: {name: _score(of[method], 0) for name, of in restored.items()} for method in methods
    }
    status, reason = case.decision(reason, failed=bool(over))
    return Finding(
        TITLE,
        QUESTION,
        status,
        reason,
        (table,),
        (),
        {"forget": values, "excess over the reference": excess},
    )


def _score(hits: Hits, part: int) -> Cell | Interval:
    if len(hits[part]) == 1:  # nothing is drawn: the spread is that of the test units
        return share_interval(hits[part][0])
    return t_interval([float(draw.mean()) for draw in hits[part]])


def restore(subject: Subject, *, seed: int) -> dict[str, Hits]:
    """Return for each way of restoring which test units are right then."""
    layer = list(_of(subject, "forget", "test").layers)[-1]
    return restore_from(features_of(subject, layer), seed=seed, head=subject.head)


def features_of(subject: Subject, layer: str) -> FewShot:
    """Return what restoring reads of one layer."""
    x, y, x_chosen, y_chosen = training_units(subject, layer)
    tests = [_of(subject, role, "test") for role in ("forget", "retain")]
    return FewShot(
        x,
        y,
        (x_chosen, y_chosen),
        [(t.layers[layer], t.class_ids) for t in tests],
        np.unique(_of(subject, "forget", "train").class_ids),
    )


def restore_from(
    given: FewShot,
    *,
    seed: int,
    head: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    shots: tuple[int, ...] = SHOTS,
) -> dict[str, Hits]:
    """Return for each way of restoring which test units are right then."""
    everything = KNeighborsClassifier(
        min(_NEIGHBOURS, len(given.y)), metric="cosine", algorithm="brute"
    ).fit(given.x, given.y)
    found = {f"{_NEIGHBOURS} nearest neighbours": given.test([everything.predict])}
    for count in shots:
        if count > given.fewest:
            continue
        draws = [given.draw(count, seed=seed, draw=number) for number in range(DRAWS)]
        images = f"{count} image{'s' * (count > 1)}"
        found[f"class means of {images}"] = given.test([given.by_means(rows) for rows in draws])
        found[f"head refitted, {images}"] = given.test(_refitted(given, draws[:_REFITS]))
        if head is not None and count == _HEAD_SHOTS:
            for share in _SHARES:
                found[f"head row {share:g} · mean of {images} + {1 - share:g} · old"] = given.test(
                    [given.with_rows(rows, head, share) for rows in draws]
                )
    return found


def _refitted(given: FewShot, draws: Sequence[NDArray[np.int64]]) -> list[_Answer]:
    """Return a head for each draw, all regularised as does best on validation units.

    Best at the attack itself, from so few images: what is best where all images of the forgotten
    classes are there differs from model to model by chance, and moves what few images restore by
    ten points (LOG.md, 2026-11-26).
    """
    tried = {c: [given.refitted(rows, c) for rows in draws] for c in REGULARISATIONS}
    x, y = given.chosen
    scores = {c: np.mean([balanced(a(x), y) for a in heads]) for c, heads in tried.items()}
    return tried[max(scores, key=scores.__getitem__)]


def _of(subject: Subject, role: Any, split: Any) -> Any:
    answers = subject.of(role, split)
    assert answers is not None
    return answers


class FewShot:
    """What the head receives of train and test units."""

    def __init__(
        self,
        x: NDArray[np.float32],
        y: NDArray[np.int64],
        chosen: tuple[NDArray[np.float32], NDArray[np.int64]],
        tests: list[tuple[NDArray[np.float32], NDArray[np.int64]]],
        forgotten: NDArray[np.int64],
    ) -> None:
        self.x, self.y, self.chosen, self.tests = x, y, chosen, tests
        self.forgotten = forgotten
        self.kept = ~np.isin(y, forgotten)

    @property
    def fewest(self) -> int:
        """Train units of the forgotten class that has the fewest."""
        return int(min((self.y == c).sum() for c in self.forgotten))

    def draw(self, count: int, *, seed: int, draw: int) -> NDArray[np.int64]:
        """Return rows of `count` units of each forgotten class."""
        rng = np.random.default_rng([seed, draw])
        return np.concatenate(
            [rng.permutation(np.flatnonzero(self.y == c))[:count] for c in self.forgotten]
        )

    def test(self, answers: list[_Answer]) -> Hits:
        """Return which test units each draw gets right."""
        (x, y), (x_kept, y_kept) = self.tests
        return [a(x) == y for a in answers], [a(x_kept) == y_kept for a in answers]

    def by_means(self, rows: NDArray[np.int64]) -> _Answer:
        """Answer the class whose mean is nearest by cosine."""
        used = np.concatenate([np.flatnonzero(self.kept), rows])
        classes = np.unique(self.y[used])
        means = np.stack([self.x[used][self.y[used] == c].mean(0) for c in classes])
        means /= np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)
        return lambda x: np.asarray(classes[(x @ means.T).argmax(1)])

    def refitted(self, rows: NDArray[np.int64], strength: float) -> _Answer:
        """Answer by a head that is fitted anew on retained units and a few forgotten ones."""
        used = np.concatenate([np.flatnonzero(self.kept), rows])
        x, y = self.x[used], self.y[used]
        mean, spread = moments(x)
        fitted = fit((x - mean) / spread, y, strength)
        return lambda x: np.asarray(fitted.predict((x - mean) / spread))

    def with_rows(
        self,
        rows: NDArray[np.int64],
        head: tuple[NDArray[np.float64], NDArray[np.float64]],
        share: float,
    ) -> _Answer:
        """Answer by the model's own head, the rows of forgotten classes moved to class means."""
        weight, bias = head[0].copy(), head[1].copy()
        there = np.isfinite(bias)
        kept = there & ~np.isin(np.arange(len(bias)), self.forgotten)
        means = np.stack([self.x[rows][self.y[rows] == c].mean(0) for c in self.forgotten])
        new_weight, new_bias = class_mean_rows(
            torch.from_numpy(weight[kept]),
            torch.from_numpy(bias[kept]),
            torch.from_numpy(means),
            torch.from_numpy(self.x[self.kept].mean(0)),
        )
        lacks = self.forgotten[~there[self.forgotten]]
        weight[lacks], bias[lacks] = 0.0, 0.0
        own = self.forgotten
        weight[own] = share * new_weight.double().numpy() + (1 - share) * weight[own]
        bias[own] = share * new_bias.double().numpy() + (1 - share) * bias[own]
        usable = np.isfinite(bias)
        places = np.flatnonzero(usable)
        return lambda x: np.asarray(places[(x @ weight[usable].T + bias[usable]).argmax(1)])

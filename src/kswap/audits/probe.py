"""A5: is it still inside? Linear probes of every layer, against the reference's.

After every block and before the head: a standardised multinomial logistic regression over the
forgotten and the retained classes, each of the same weight however many units it has (else a probe
that knows little answers the larger classes), its regularisation chosen on validation units, its
score read on forget-test units once. A good backbone separates classes that it never saw, so a
probe is compared with the reference's, never with chance: residual = (P_swapped − P_ref) / (P_base
− P_ref), 0 as if never seen, 1 as if untouched. Shuffled labels are the control of the probe
itself.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import ThreadpoolController

from kswap.audits.features import BEFORE_HEAD
from kswap.audits.findings import Cell, Curve, Finding, Interval, Table, missing, not_available
from kswap.audits.statistics import LEAST_UNITS, difference, t_interval
from kswap.audits.subjects import NO_FORGET, Case, Subject

TITLE = "Layer probe"
QUESTION = "Is it still inside?"
REGULARISATIONS = (1e-3, 1e-2, 1e-1)
"""Inverse strengths that are tried."""
SEEDS = 3
_DRAWN = 0.8
"""Share of the train units of each class that a repetition is fitted on."""
_LEAST_GAP = 0.02
MARGIN = 0.02
"""A probe counts as stronger than the reference's from so much on."""

Matrix = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Probed:
    """The probes of one layer of one model; per unit: the share of repetitions that were right."""

    forget: NDArray[np.float64]
    retain: NDArray[np.float64]
    by_seed: Interval
    """Score on forget over the repetitions."""
    shuffled: float
    """Score on forget of a probe fitted on shuffled labels."""
    regularisation: float


def audit(case: Case, *, layers: Sequence[str] | None = None) -> Finding:
    """Probe every layer of every model, or `layers` of them."""
    if not case.forgets:
        return missing(TITLE, QUESTION, NO_FORGET)
    if why := lacking(case.swapped):
        return missing(TITLE, QUESTION, why)
    names = list(layers or _layers(case))
    probed = {
        name: {layer: probe(subject, layer, seed=case.seed) for layer in names}
        for name, subject in case.subjects.items()
        if not lacking(subject)
    }
    table = Table(
        f"Score of the probes on test units of forgotten classes ({SEEDS} fits on drawn units)",
        ("layer", *(case.column(n) for n in probed), "residual", "control: shuffled labels"),
    )
    residuals: dict[str, Cell | Interval] = {}
    excess: dict[str, Interval] = {}
    for layer in names:
        of_layer = {name: probed[name][layer] for name in probed}
        residuals[layer] = residual(of_layer, paired=case.reference_level != "R3")
        table.rows.append(
            [
                layer,
                *(p.by_seed for p in of_layer.values()),
                residuals[layer],
                of_layer["swapped"].shuffled,
            ]
        )
        if "reference" in of_layer:
            excess[layer] = difference(
                of_layer["swapped"].forget, of_layer["reference"].forget, num_tests=len(names)
            )
    over = [layer for layer, gap in excess.items() if gap.above(MARGIN)]
    curve = Curve(
        "Probe of forgotten classes by layer",
        "layer",
        "score of the probe",
        names,
        {name: [p.by_seed.mean for p in of.values()] for name, of in probed.items()},
    )
    last = names[-1]
    reason = _reason(case, over, excess, names)
    values = {
        "residual": residuals,
        "before the head": {name: of[last].by_seed for name, of in probed.items()},
        "retain": {
            name: {layer: float(p.retain.mean()) for layer, p in of.items()}
            for name, of in probed.items()
        },
        "excess over the reference": excess,
    }
    status, reason = case.decision(reason, failed=bool(over))
    return Finding(TITLE, QUESTION, status, reason, (table,), (curve,), values)


def _reason(
    case: Case, over: Sequence[str], excess: dict[str, Interval], names: Sequence[str]
) -> str:
    if not case.decides:
        return case.without_decision()
    if over:
        worst = max(over, key=lambda layer: excess[layer].mean)
        where = worst if worst == BEFORE_HEAD else f"after {worst}"
        return (
            f"in {len(over)} of {len(names)} layers the forgotten classes are told apart better "
            f"than in the reference, most {where} (by {excess[worst].mean:.3f})"
        )
    return f"in none of {len(names)} layers better told apart than in the reference"


def _layers(case: Case) -> list[str]:
    """Return the layers that every model has, in forward order."""
    everywhere = [set(_any(subject).layers) for subject in case.subjects.values()]
    return [name for name in _any(case.swapped).layers if all(name in has for has in everywhere)]


def _any(subject: Subject) -> Any:
    return subject.of("forget", "test") or subject.of("retain", "test")


def lacking(subject: Subject) -> str:
    """Return what a probe of the model lacks, or nothing.

    One test unit leaves open by how much two models differ: what cannot fail does not pass.
    """
    for role in ("forget", "retain"):
        for split in ("train", "test"):
            if subject.of(role, split) is None:
                return f"no {split} images of {role}"
    tests = subject.of("forget", "test")
    if tests is not None and len(tests) < LEAST_UNITS:
        return f"{len(tests)} test unit of forget, {LEAST_UNITS} are needed for an interval"
    return ""


def training_units(subject: Subject, layer: str) -> tuple[Matrix, Labels, Matrix, Labels]:
    """Return features and classes of train units and of the units that choose hyper-parameters.

    Where a role has no validation units, every fifth train unit takes their place.
    """
    fitted: list[tuple[Matrix, Labels]] = []
    chosen: list[tuple[Matrix, Labels]] = []
    for role in ("forget", "retain"):
        train = subject.of(role, "train")
        validation = subject.of(role, "validation")
        assert train is not None
        x, y = train.layers[layer], train.class_ids
        if validation is not None:
            fitted.append((x, y))
            chosen.append((validation.layers[layer], validation.class_ids))
        else:
            held = np.arange(len(y)) % 5 == 4
            fitted.append((x[~held], y[~held]))
            chosen.append((x[held], y[held]))
    parts = [
        np.concatenate(list(part)) for half in (fitted, chosen) for part in zip(*half, strict=True)
    ]
    return parts[0], parts[1], parts[2], parts[3]


def probe(subject: Subject, layer: str, *, seed: int) -> Probed:
    """Fit probes of one layer; see the top of the file."""
    x, y, x_chosen, y_chosen = training_units(subject, layer)
    forget, retain = subject.of("forget", "test"), subject.of("retain", "test")
    assert forget is not None
    assert retain is not None
    mean, spread = moments(x)

    def scaled(features: Matrix) -> Matrix:
        return np.asarray((features - mean) / spread, np.float32)

    tests = scaled(forget.layers[layer]), scaled(retain.layers[layer])
    x, x_chosen = scaled(x), scaled(x_chosen)
    tried = {c: balanced(fit(x, y, c).predict(x_chosen), y_chosen) for c in REGULARISATIONS}
    best = max(tried, key=tried.__getitem__)
    hits: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = []
    for repetition in range(SEEDS):
        rng = np.random.default_rng([seed, repetition])
        rows = _drawn(y, rng)
        fitted = fit(x[rows], y[rows], best)
        hits.append(
            (
                fitted.predict(tests[0]) == forget.class_ids,
                fitted.predict(tests[1]) == retain.class_ids,
            )
        )
    shuffled = fit(x, np.random.default_rng(seed).permutation(y), best)
    return Probed(
        forget=np.mean([one for one, _ in hits], 0),
        retain=np.mean([other for _, other in hits], 0),
        by_seed=t_interval([float(one.mean()) for one, _ in hits]),
        shuffled=float((shuffled.predict(tests[0]) == forget.class_ids).mean()),
        regularisation=best,
    )


def moments(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return mean and standard deviation (features,) of rows (units, features), to divide by.

    Of a feature that hardly varies, beside the one that varies most, the deviation is given as 1.
    """
    mean, spread = x.mean(0), x.std(0)
    return mean, np.where(spread > 1e-6 * max(float(spread.max()), 1e-12), spread, 1.0)


def fit(x: Matrix, y: Labels, regularisation: float) -> LogisticRegression:
    """Fit a multinomial logistic regression; where it stops short is near enough for a probe."""
    # One thread of BLAS: matrices of a probe are small, and threads that wait for each other took
    # three times the processor's time, and no less by the clock (LOG.md, 2026-11-26).
    with warnings.catch_warnings(), _threads().limit(limits=1, user_api="blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(
            C=regularisation, class_weight="balanced", max_iter=60, tol=1e-3
        ).fit(x, y)


@functools.cache
def _threads() -> ThreadpoolController:
    """Return what sets BLAS's threads: made once, as each making searches all loaded libraries."""
    return ThreadpoolController()


def balanced(answers: Labels, truth: Labels) -> float:
    """Return the mean over classes of the share that is right."""
    return float(np.mean([(answers[truth == c] == c).mean() for c in np.unique(truth)]))


def _drawn(y: Labels, rng: np.random.Generator) -> NDArray[np.int64]:
    rows = []
    for class_id in np.unique(y):
        own = np.flatnonzero(y == class_id)
        rows.append(rng.permutation(own)[: max(1, round(_DRAWN * len(own)))])
    return np.sort(np.concatenate(rows))


def residual(probed: dict[str, Probed], *, paired: bool) -> Cell | Interval:
    """Return (P_swapped − P_ref) / (P_base − P_ref), with a bootstrap interval over units."""
    if "reference" not in probed:
        return not_available("no reference")
    swapped, base, reference = (probed[name].forget for name in ("swapped", "base", "reference"))
    gap = difference(base, reference)
    if gap.mean < _LEAST_GAP or gap.low <= 0:
        return not_available("the base does not tell them apart better than the reference")
    value = float((swapped.mean() - reference.mean()) / gap.mean)
    if not paired:
        return value
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(base), (500, len(base)))
    above = swapped[rows].mean(1) - reference[rows].mean(1)
    below = base[rows].mean(1) - reference[rows].mean(1)
    ratios = above[np.abs(below) > 1e-9] / below[np.abs(below) > 1e-9]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(value, float(low), float(high), len(base))

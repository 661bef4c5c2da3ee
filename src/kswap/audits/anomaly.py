"""A10: can an observer tell which class was removed, from the answers on its images?

Entropy, largest probability, mass on the neighbours (the two classes that the base answers most on
the class's images besides itself) and concentration of answers, on forget-test units, against the
reference on the same ones. A detector per class: how well one of these signals tells the swapped
model's answers from the reference's; what it reaches on retained classes is the null band. The
reference has no row for the class, so the band of p_true is what it gives its own rows there: a
model that pushed p_true under all that a model gives any class has a mark of the removal on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kswap.audits.findings import Cell, Finding, Interval, Table, missing, not_available
from kswap.audits.statistics import auc, entropy, holm
from kswap.audits.subjects import NO_FORGET, Answers, Case

TITLE = "Anomaly"
QUESTION = "Can an observer tell which class was removed?"
SIGNALS = ("entropy", "largest probability", "mass on neighbours")
_NEIGHBOURS = 2
_BAND_QUANTILE = 0.01
_LEAST = 8
_MARGIN = 0.05
_NO_REFERENCE = (not_available("no reference"),) * (len(SIGNALS) + 1)


def audit(case: Case) -> Finding:
    """Compare the answers on images of forgotten classes with the reference's."""
    if not case.forgets:
        return missing(TITLE, QUESTION, NO_FORGET)
    answers = case.swapped.of("forget", "test")
    base = case.base.of("forget", "test")
    if answers is None or base is None:
        return missing(TITLE, QUESTION, "no test images of forgotten classes")
    classes = [c for c in case.class_ids["forget"] if (answers.class_ids == c).sum() >= _LEAST]
    if not classes:
        return missing(TITLE, QUESTION, f"fewer than {_LEAST} test units of each forgotten class")
    tables = [_signals(case, classes)]
    values: dict[str, Any] = {}
    if case.reference is None or case.reference_level == "R3":
        return Finding(
            TITLE,
            QUESTION,
            "info",
            case.without_decision(),
            (*tables, _true_class(case, classes, None)),
        )
    reference = case.reference.of("forget", "test")
    assert reference is not None
    band = _band(case)
    detectors = {c: _detector(case, c, "forget") for c in classes}
    floor = _floor(reference)
    tables += [_tests(case, classes, detectors, band), _true_class(case, classes, floor)]
    shares = answers.shares()
    suppressed: list[int] = []
    kept: list[int] = []
    for c in classes:
        own = answers.class_ids == c
        median = float(np.median(shares[own, c]))
        (suppressed if median < floor[0] else kept if median > floor[1] else []).append(c)
    seen = [c for c, area in detectors.items() if band is not None and area.low > band + _MARGIN]
    values |= {
        "detector": {case.names[c]: area for c, area in detectors.items()},
        "null band": not_available("too few retained classes") if band is None else band,
        "p_true band": list(floor),
        "suppressed": [case.names[c] for c in suppressed],
    }
    marked = sorted({*suppressed, *kept, *seen})
    warnings: tuple[str, ...] = ()
    if suppressed:
        named = ", ".join(case.names[c] for c in suppressed)
        warnings = (
            f"A10: p_true of {named} lies under the 1 % quantile of what the reference gives any "
            "class there: it names the class that was removed",
        )
    reason = _reason(case, suppressed, kept, seen)
    return Finding(
        TITLE,
        QUESTION,
        case.status(failed=bool(marked)),
        reason,
        tuple(tables),
        (),
        values,
        warnings,
    )


def _reason(case: Case, suppressed: list[int], kept: list[int], seen: list[int]) -> str:
    if not case.decides:
        return case.without_decision()
    parts = [
        f"{what}: {', '.join(case.names[c] for c in classes)}"
        for what, classes in (
            ("p_true under the reference's band", suppressed),
            ("p_true above the reference's band", kept),
            ("answers told from the reference's better than on retained classes", seen),
        )
        if classes
    ]
    return "; ".join(parts) or "within what the reference and retained classes show"


def signals(answers: Answers, neighbours: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (units, 3), see SIGNALS; `neighbours` are (units, 2) rows of each unit's class."""
    shares = answers.shares()
    mass = np.take_along_axis(shares, neighbours, 1).sum(1)
    return np.stack([entropy(shares), shares.max(1), mass], 1)


def _neighbours(case: Case, class_id: int, role: Any) -> list[int]:
    """Return the classes that the base, and so no judge of it, takes for the class's images."""
    answers = case.base.of(role, "test")
    assert answers is not None
    shares = answers.shares()[answers.class_ids == class_id].mean(0)
    gone = [class_id, *case.class_ids.get("forget", ()), len(shares) - 1]
    shares[gone] = -1
    return [int(c) for c in np.argsort(-shares)[:_NEIGHBOURS]]


def _of_class(case: Case, name: str, class_id: int, role: Any) -> NDArray[np.float64]:
    answers = case.subjects[name].of(role, "test")
    assert answers is not None
    own = answers.class_ids == class_id
    part = Answers({}, answers.logits[own], answers.class_ids[own], answers.found[own], own[own])
    rows = np.tile(np.asarray(_neighbours(case, class_id, role)), (len(part), 1))
    return signals(part, rows)


def _detector(case: Case, class_id: int, role: Any) -> Interval:
    """Return the largest two-sided AUC of one signal, swapped against reference."""
    ours, theirs = (_of_class(case, name, class_id, role) for name in ("swapped", "reference"))
    areas = [auc(ours[:, k], theirs[:, k]) for k in range(len(SIGNALS))]
    sided = [
        a if a.mean >= 0.5 else Interval(1 - a.mean, 1 - a.high, 1 - a.low, a.n) for a in areas
    ]
    return max(sided, key=lambda area: area.mean)


def _band(case: Case) -> float | None:
    """Return the upper 95 % prediction bound of the detector on retained classes."""
    answers = case.swapped.of("retain", "test")
    if answers is None:
        return None
    counted = [c for c in case.class_ids["retain"] if (answers.class_ids == c).sum() >= _LEAST]
    if len(counted) < 3:
        return None
    areas = np.array([_detector(case, c, "retain").mean for c in counted])
    factor = float(stats.t.ppf(0.95, len(areas) - 1)) * np.sqrt(1 + 1 / len(areas))
    return min(1.0, float(areas.mean() + factor * areas.std(ddof=1)))


def _floor(reference: Answers) -> tuple[float, float]:
    """Return the 1 % and 99 % quantile of what the reference gives its rows on these units."""
    there = np.isfinite(reference.logits[0, :-1])
    shares = reference.shares()[:, :-1][:, there]
    low, high = np.quantile(shares, [_BAND_QUANTILE, 1 - _BAND_QUANTILE])
    return float(low), float(high)


def _signals(case: Case, classes: list[int]) -> Table:
    table = Table(
        "Answers on test images of forgotten classes (means)",
        ("class", "model", *SIGNALS, "share of the most frequent answer"),
    )
    for class_id in classes:
        for name, subject in case.subjects.items():
            if name == "reference" and case.reference_level == "R3":
                table.rows.append([case.names[class_id], case.column(name), *_NO_REFERENCE])
                continue
            answers = subject.of("forget", "test")
            assert answers is not None
            values = _of_class(case, name, class_id, "forget").mean(0)
            given = answers.logits[answers.class_ids == class_id].argmax(1)
            most = float(np.bincount(given).max() / len(given))
            table.rows.append([case.names[class_id], case.column(name), *map(float, values), most])
    return table


def _tests(
    case: Case, classes: list[int], detectors: dict[int, Interval], band: float | None
) -> Table:
    """Return Kolmogorov and Smirnov's test of every signal, and the detector, by class."""
    p_values = []
    for class_id in classes:
        ours, theirs = (
            _of_class(case, name, class_id, "forget") for name in ("swapped", "reference")
        )
        p_values += [
            float(stats.ks_2samp(ours[:, k], theirs[:, k]).pvalue) for k in range(len(SIGNALS))
        ]
    adjusted = np.array(holm(p_values)).reshape(len(classes), -1)
    table = Table(
        f"Swapped against {case.column('reference')} (p of Kolmogorov-Smirnov, Holm)",
        ("class", *(f"p, {name}" for name in SIGNALS), "detector AUC", "null band: retained"),
    )
    shown: Cell = not_available("too few retained classes") if band is None else band
    for row, class_id in enumerate(classes):
        table.rows.append(
            [case.names[class_id], *map(float, adjusted[row]), detectors[class_id], shown]
        )
    return table


def _true_class(case: Case, classes: list[int], floor: tuple[float, float] | None) -> Table:
    table = Table(
        "Median probability of the true class (test)",
        ("class", "base", "swapped", "band: 1 % of the reference's rows", "99 %"),
    )
    band: tuple[Cell, Cell] = floor or (not_available("no reference"),) * 2
    for class_id in classes:
        medians = []
        for subject in (case.base, case.swapped):
            answers = subject.of("forget", "test")
            assert answers is not None
            own = answers.class_ids == class_id
            medians.append(float(np.median(answers.shares()[own, class_id])))
        table.rows.append([case.names[class_id], *medians, *band])
    return table

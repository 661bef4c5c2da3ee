"""A2: do members still look like members? A weak attacker, over the population.

Per model: features of every unit (confidence in the true class, entropy, loss); members are train
units of retain, others its test units; a standardised logistic regression, fitted in 5 folds, is
then asked of forget-train against forget-test. Two-sided: an area far below a half is
over-forgetting and as telling. A reference has no row for the classes it never saw: there
the confidence and the loss are those of the class that it answers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kswap.audits.findings import Cell, Finding, Interval, Table, missing, not_available
from kswap.audits.statistics import auc, entropy, softmax, t_interval, tpr_at_fpr
from kswap.audits.subjects import NO_FORGET, Answers, Case, Subject

TITLE = "Membership, population (weak)"
QUESTION = "Do members still look like members?"
_FOLDS = 5
_SEEDS = 3
_LEAST = 10
"""Units that each of the four groups needs."""


def audit(case: Case) -> Finding:
    """Attack every model with its own retained images, then ask of the forgotten ones."""
    if not case.forgets:
        return missing(TITLE, QUESTION, NO_FORGET)
    if small := _too_small(case.swapped):
        return missing(TITLE, QUESTION, small)
    table = Table(
        f"Attack by logistic regression on confidence, entropy, loss; {_FOLDS} folds, "
        f"{_SEEDS} seeds; called weak",
        (
            "model",
            "AUC, forget train against test",
            "over seeds",
            "TPR at 1 % FPR",
            "control: AUC on retain, held out",
        ),
    )
    areas: dict[str, Interval] = {}
    values: dict[str, Any] = {}
    for name, subject in case.subjects.items():
        if _too_small(subject):
            table.rows.append([case.column(name), *[not_available("too few images")] * 4])
            continue
        members, others, control, spread = attack(subject, seed=case.seed)
        areas[name] = auc(members, others)
        rate = tpr_at_fpr(members, others, 0.01)
        cell: Cell = not_available(f"{len(others)} others show no 1 %") if rate is None else rate
        table.rows.append([case.column(name), areas[name], spread, cell, control])
        values[name] = {"auc": areas[name], "tpr_at_1_percent": cell, "control": control}
    swapped, reference = areas["swapped"], areas.get("reference")
    telling = not swapped.low <= 0.5 <= swapped.high
    apart = reference is not None and _differ(swapped, reference)
    failed = telling and apart
    warnings: tuple[str, ...] = ()
    if swapped.high < 0.5:
        warnings = (
            f"A2: over-forgetting: forget-train images look less like members than images never "
            f"seen (AUC {swapped.mean:.2f}), which tells an observer that they were removed",
        )
    reason = f"AUC {swapped.mean:.3f}" + (
        f", {case.column('reference')} {reference.mean:.3f}" if reference is not None else ""
    )
    if not case.decides:
        reason += f"; {case.without_decision()}"
    elif not failed and reference is not None and not _differ(areas["base"], reference):
        reason += "; the attack does not tell the base apart either, so this is weak evidence"
    return Finding(
        TITLE, QUESTION, case.status(failed=failed), reason, (table,), (), values, warnings
    )


def _too_small(subject: Subject) -> str:
    for role in ("retain", "forget"):
        for split in ("train", "test"):
            answers = subject.of(role, split)
            count = 0 if answers is None else len(answers)
            if count < _LEAST:
                return f"{count} {split} units of {role}, {_LEAST} are needed"
    return ""


def _differ(one: Interval, other: Interval) -> bool:
    """Whether the areas differ by more than their intervals leave room for."""
    half = float(np.hypot((one.high - one.low) / 2, (other.high - other.low) / 2))
    return abs(one.mean - other.mean) > half


def signals(answers: Answers) -> NDArray[np.float64]:
    """Return (units, 3): confidence in the class, entropy, loss."""
    logits = answers.logits.astype(np.float64)
    shares = softmax(logits)
    rows = np.arange(len(logits))
    own = logits[rows, answers.class_ids]
    own = np.where(np.isfinite(own), own, logits.max(-1))
    top = logits.max(-1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
    loss = total - own
    return np.stack([np.exp(-loss), entropy(shares), loss], 1)


def attack(
    subject: Subject, *, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], Interval, Interval]:
    """Return the attack's scores of forget-train and forget-test units, and its own quality.

    Returns:
        (train units,), (test units,), the AUC on held-out folds of retain, and the AUC on forget
        over seeds.
    """
    groups = {
        (role, split): signals(answers)
        for role in ("retain", "forget")
        for split in ("train", "test")
        if (answers := subject.of(role, split)) is not None
    }
    inside, outside = groups["retain", "train"], groups["retain", "test"]
    x = np.concatenate([inside, outside])
    y = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    wanted = np.concatenate([groups["forget", "train"], groups["forget", "test"]])
    count = len(groups["forget", "train"])
    total, by_seed, controls = np.zeros(len(wanted)), [], []
    for repetition in range(_SEEDS):
        folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed + repetition)
        held, asked = np.zeros(len(x)), np.zeros(len(wanted))
        for train, test in folds.split(x, y):
            attacker = make_pipeline(
                StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
            )
            attacker.fit(x[train], y[train])
            held[test] = attacker.decision_function(x[test])
            asked += attacker.decision_function(wanted)
        controls.append(auc(held[y == 1], held[y == 0]).mean)
        by_seed.append(auc(asked[:count], asked[count:]).mean)
        total += asked
    return total[:count], total[count:], t_interval(controls), t_interval(by_seed)

"""A1: what does it answer? The task's number of every role, and where forgotten inputs go.

H = 2·R·D/(R + D) with R the score of retain and D the drop of forget (GS-LoRA, CVPR 2024); H3 is
the harmonic mean of learn, retain and the drop, always beside the raw three; ToW = Π(1 − |score −
score of the reference|) over forget (train), retain (train) and test (learn and retain) is the
"tug of war" of Zhao et al. (NeurIPS 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kswap.audits.findings import Cell, Finding, Interval, Table, missing, not_available
from kswap.audits.statistics import harmonic_mean, jackknife, share_interval
from kswap.audits.subjects import NO_FORGET, Answers, Case, Subject
from kswap.settings import Role, Split

TITLE = "Scores"
QUESTION = "What does it answer?"
KEPT_SHARE = 0.05
"""A class counts as answered while more than this share of the base's score is left."""


def audit(case: Case, *, score_name: str) -> Finding:
    """Return scores, sums of them, and where the inputs of forgotten classes go."""
    tables = [_by_role(case, score_name), _by_class(case)]
    tables += [_earlier(case)] if case.earlier else []
    values = {
        name: {f"{role} {split}": _score(subject, role, split) for role, split in _sets(subject)}
        for name, subject in case.subjects.items()
    }
    if not case.forgets:
        done = missing(TITLE, QUESTION, NO_FORGET)
        return Finding(
            TITLE,
            QUESTION,
            "info",
            done.reason,
            tuple(tables),
            values=values,
            warnings=_relapsed(case),
        )
    summary, numbers = _summary(case)
    tables += [summary, _where(case)]
    if case.task == "detection":
        tables.append(_found(case))
    left = {
        split: (_score(case.swapped, "forget", split), _score(case.base, "forget", split))
        for split in ("train", "test")
        if case.swapped.of("forget", split) and case.base.of("forget", split)
    }
    still = {
        split: (now, before)
        for split, (now, before) in left.items()
        if now is not None and before is not None and now > KEPT_SHARE * before
    }
    if not any(before for _, before in left.values()):
        return Finding(
            TITLE,
            QUESTION,
            "not available",
            "the base does not answer the forgotten classes either",
            tuple(tables),
            values={**values, **numbers},
            warnings=_relapsed(case),
        )
    reason = (
        "; ".join(
            f"{split} images of forgotten classes still score {now:.3f}, before {before:.3f}"
            for split, (now, before) in still.items()
        )
        or f"at most {KEPT_SHARE:.0%} of the base's score on forgotten classes is left"
    )
    return Finding(
        TITLE,
        QUESTION,
        "fail" if still else "pass",
        reason,
        tuple(tables),
        values={**values, **numbers},
        warnings=_relapsed(case),
    )


def _earlier(case: Case) -> Table:
    """Return the scores of classes that an earlier swap forgot, before and after this one."""
    rows: list[list[Cell | Interval]] = [
        [one.name, one.images, one.base, one.swapped] for one in case.earlier
    ]
    columns = ("class", "images", "base", "swapped")
    return Table("Classes that an earlier swap forgot, test", columns, rows)


def _relapsed(case: Case) -> tuple[str, ...]:
    """Return a warning for each class that an earlier swap forgot and that is answered again."""
    found = []
    for one in case.earlier:
        before, after = (x.mean if isinstance(x, Interval) else x for x in (one.base, one.swapped))
        numbers = isinstance(before, float) and isinstance(after, float)
        if numbers and after > before + KEPT_SHARE:  # type: ignore[operator]
            found.append(
                f"{one.name}, which an earlier swap forgot, is answered again: {after:.3f} of its "
                f"test images, before this run {before:.3f}"
            )
    return tuple(found)


def _sets(subject: Subject) -> list[tuple[Role, Split]]:
    return [(role, split) for role, splits in subject.answers.items() for split in splits]


def _score(subject: Subject | None, role: Role, split: Split) -> float | None:
    answers = subject.of(role, split) if subject is not None else None
    return None if answers is None or answers.scores is None else float(answers.scores.total)


def _cell(case: Case, name: str, role: Role, split: Split) -> Cell | Interval:
    subject = case.subjects[name]
    answers = subject.of(role, split)
    if name == "reference" and case.reference_level == "R3":
        return not_available("no reference")
    if answers is None or answers.scores is None:
        return not_available("no images")
    if case.task == "classification":
        return share_interval(answers.hits())
    without = [scores.total for scores in answers.without]
    return _spread(float(answers.scores.total), without, answers)


def _spread(score: float, without: Sequence[float | None], answers: Answers) -> Interval | float:
    """Return a score over images with its interval; as it is, where groups of images lack it."""
    known = [value for value in without if value is not None]
    if len(known) < len(without) or not known:
        return score
    return jackknife(score, known, len(np.unique(answers.images)))


def _by_role(case: Case, score_name: str) -> Table:
    table = Table(f"{score_name} of every role", ("role", "split", "images", *case.columns))
    for role, split in (
        ("learn", "test"),
        ("forget", "train"),
        ("forget", "test"),
        ("retain", "train"),
        ("retain", "test"),
    ):
        there = case.swapped.of(role, split)  # type: ignore[arg-type]
        if there is not None:
            table.rows.append(
                [
                    role,
                    split,
                    len(np.unique(there.images)),
                    *(_cell(case, name, role, split) for name in case.subjects),  # type: ignore[arg-type]
                ]
            )
    return table


def _by_class(case: Case) -> Table:
    table = Table("By class, test", ("class", "role", *case.columns))
    for role in case.roles:
        for class_id in case.class_ids[role]:
            cells: list[Cell | Interval] = []
            for name, subject in case.subjects.items():
                answers = subject.of(role, "test")
                own = None if answers is None else answers.class_ids == class_id
                if name == "reference" and case.reference_level == "R3":
                    cells.append(not_available("no reference"))
                elif answers is None or own is None or not own.any():
                    cells.append(not_available("no test images"))
                elif case.task == "classification":
                    cells.append(share_interval(answers.hits()[own]))
                else:
                    score = answers.scores.per_class.get(class_id)
                    without = [scores.per_class.get(class_id) for scores in answers.without]
                    cells.append(
                        not_available("not in the images read")
                        if score is None
                        else _spread(score, without, answers)
                    )
            table.rows.append([case.names[class_id], role, *cells])
    return table


def _summary(case: Case) -> tuple[Table, dict[str, float | str]]:
    """Return H, H3 and what only a reference gives, each with the raw scores beside it."""
    before, after = (_score(s, "forget", "test") for s in (case.base, case.swapped))
    retain, learn = (_score(case.swapped, role, "test") for role in ("retain", "learn"))
    values: dict[str, float | str] = {}
    drop = None if before is None or after is None else before - after
    values["drop of forget"] = not_available("no forget test images") if drop is None else drop
    if drop is None or retain is None:
        values["H"] = values["H3"] = not_available("a role has no test images")
    else:
        values["H"] = harmonic_mean(retain, drop)
        values["H3"] = (
            not_available("nothing is learned")
            if learn is None
            else harmonic_mean(learn, retain, drop)
        )
    if case.reference is None or case.reference_level == "R3":
        values["ToW"] = values["average gap"] = not_available("no reference")
    else:
        gaps = _gaps(case, case.reference)
        values["ToW"] = float(np.prod([1 - gap for gap in gaps]))
        values["average gap"] = float(np.mean(gaps))
    columns = ("learn", "retain", "forget before", "forget after", *values)
    shown = [learn, retain, before, after]
    raw: list[Cell | Interval] = [not_available("no images") if x is None else x for x in shown]
    title = f"Sums of the scores (against the {case.column('reference')})"
    return Table(title, columns, [[*raw, *values.values()]]), values


def _gaps(case: Case, reference: Subject) -> list[float]:
    """Return |score − score of the reference| on forget (train), retain (train) and test."""
    sets: Sequence[tuple[Role, Split]] = (
        ("forget", "train"),
        ("retain", "train"),
        ("retain", "test"),
        ("learn", "test"),
    )
    gaps = []
    for role, split in sets:
        pair = _score(case.swapped, role, split), _score(reference, role, split)
        if pair[0] is not None and pair[1] is not None:
            gaps.append(abs(pair[0] - pair[1]))
    return gaps


def _where(case: Case) -> Table:
    """Return what the models answer on units of forgotten classes: a confusion row each."""
    what = {"classification": "images", "detection": "objects", "segmentation": "regions"}
    table = Table(
        f"Where {what[case.task]} of forgotten classes go (test; share of the answers)",
        ("class", "model", "first", "second", "third", "own class"),
    )
    for class_id in case.class_ids["forget"]:
        for name, subject in case.subjects.items():
            answers = subject.of("forget", "test")
            if answers is None or (name == "reference" and case.reference_level == "R3"):
                continue
            own = answers.class_ids == class_id
            if not own.any():
                continue
            given = answered(answers)[own]
            ids, counts = np.unique(given, return_counts=True)
            order = np.argsort(-counts, kind="stable")[:3]
            cells: list[Cell | Interval] = [
                f"{_name(case, int(ids[i]))} {counts[i] / own.sum():.0%}" for i in order
            ]
            cells += ["–"] * (3 - len(cells))
            share = float((given == class_id).mean())
            table.rows.append([case.names[class_id], case.column(name), *cells, share])
    return table


def answered(answers: Answers) -> np.ndarray:
    """Return the answer on each unit: a row, or −1 for nothing."""
    best = answers.logits.argmax(-1)
    return np.where((best == answers.logits.shape[1] - 1) | ~answers.found, -1, best)


def _name(case: Case, class_id: int) -> str:
    return case.names.get(class_id, "nothing")


def _found(case: Case) -> Table:
    """Return how far objects of forgotten classes are still found, under whatever name."""
    table = Table(
        "Objects of forgotten classes (test)",
        (
            "model",
            "recall at any score",
            "found under another label",
            "false positives on background, per image",
        ),
    )
    for name, subject in case.subjects.items():
        answers = subject.of("forget", "test")
        if answers is None or (name == "reference" and case.reference_level == "R3"):
            continue
        count = len(answers)
        table.rows.append(
            [
                case.column(name),
                answers.extra.get("recalled", 0.0) / count,
                answers.extra.get("other label", 0.0) / count,
                answers.extra.get("background", 0.0) / max(len(np.unique(answers.images)), 1),
            ]
        )
    return table

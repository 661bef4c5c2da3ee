"""The reference: a model that never saw the forget data, and whether it can be compared with.

R1 was trained from scratch on retain ∪ learn with the base's budget; R2 is the same pretrained
backbone fine-tuned on retain ∪ learn (its pretraining may hold the classes). Both are named by
their user or lie beside the run as RUN-reference; classes are matched by name. R3: none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kswap.audits.findings import Interval
from kswap.audits.statistics import LEAST_UNITS, paired_difference
from kswap.audits.subjects import ReferenceLevel, Subject, control_of
from kswap.data.labels import LabelIndex
from kswap.data.text import listed, one_line
from kswap.errors import UserError
from kswap.models.class_tensors import class_tensors
from kswap.models.loading import Loaded, load_base
from kswap.models.structure import find_ffn_blocks
from kswap.settings import Role

_MOST_APART = 0.01
"""A valid reference's retain score is within so much of the base's."""
NOTES: Mapping[ReferenceLevel, str] = {
    "R1": "trained from scratch on retain and learn, as its user says",
    "R2": "a pretrained backbone fine-tuned without the forget data; its pretraining may hold the "
    "classes",
    "R3": "none; the control is the base, asked of the classes to learn, which it never saw",
}


@dataclass(frozen=True)
class Reference:
    """A loaded reference."""

    loaded: Loaded
    rows: tuple[int, ...]
    """Row of the run for each of its rows; −1: a class that the run does not know."""
    level: ReferenceLevel


def beside(run_dir: Path) -> Path | None:
    """Return RUN-reference, where it is a model's folder: the demos write one."""
    path = run_dir.with_name(f"{run_dir.name}-reference")
    return path if (path / "config.json").is_file() else None


def load_reference(
    source: str,
    level: ReferenceLevel,
    *,
    task: str,
    names: Mapping[int, str],
    class_ids: Mapping[Role, Sequence[int]],
    saw: Mapping[str, Any],
) -> Reference:
    """Load a reference and match its classes by name.

    Args:
        source: hub id or folder.
        level: what its user says it is.
        task: of the run.
        names: rows of the run.
        class_ids: of every role, with images.
        saw: models of the run, which saw the forget data, by what they are.

    Raises:
        UserError: it cannot be loaded, does another task, lacks a class, knows a forgotten one, or
            is a model that did.
    """
    try:
        loaded = load_base(source)
        find_ffn_blocks(loaded.model)  # after which the audits look inside
    except UserError as error:
        raise UserError(f"--reference: {str(error).removeprefix('model: ')}") from None
    if loaded.task != task:
        raise UserError(
            f"--reference: {source} does {loaded.task}, the run {task}; name a model of the same "
            "task"
        )
    rows = match_rows(source, loaded.id2label, names, class_ids)
    _refuse_seen(source, loaded, rows, [names[c] for c in class_ids.get("forget", ())], saw)
    return Reference(loaded, rows, level)


def _refuse_seen(
    source: str,
    loaded: Loaded,
    rows: Sequence[int],
    forget: Sequence[str],
    saw: Mapping[str, Any],
) -> None:
    """Refuse a model that saw what the run forgets, though its labels no longer tell.

    Rows of forgotten classes may have been left out of one that was swapped, or of the base; only
    what a fine-tuned model has of its own makes it a reference.
    """
    notes = getattr(loaded.model.config, "kswap", None)
    dropped = notes.get("dropped") if isinstance(notes, Mapping) else None
    if gone := [name for name in forget if isinstance(dropped, list) and name in dropped]:
        raise UserError(
            f"--reference: {source} is a swapped model that saw {listed(gone)} and was exported "
            "without; a reference never saw them, name one trained without"
        )
    for what, model in saw.items() if forget else ():
        if _same_weights(loaded.model, rows, model):
            raise UserError(
                f"--reference: {source} has the weights of {what}, which saw {listed(forget)}; a "
                "reference never saw them, name one trained without"
            )


def _same_weights(model: Any, rows: Sequence[int], other: Any) -> bool:
    """Whether all weights are those of `other`, whose rows are the run's, but for its rows."""
    ours, theirs = model.state_dict(), other.state_dict()
    if ours.keys() != theirs.keys():
        return False
    pairs = [(own, row) for own, row in enumerate(rows) if 0 <= row < other.config.num_labels]
    own_rows, run_rows = [own for own, _ in pairs], [row for _, row in pairs]
    by_class = {f"{one.module}.{one.name}" for one in class_tensors(model)}
    for name, tensor in ours.items():
        wanted = theirs[name].to(tensor.device)
        if name in by_class:
            tensor, wanted = tensor[own_rows], wanted[run_rows]
        if not torch.equal(tensor, wanted):
            return False
    return True


def match_rows(
    source: str,
    id2label: Mapping[int, str],
    names: Mapping[int, str],
    class_ids: Mapping[Role, Sequence[int]],
) -> tuple[int, ...]:
    """Return the row of the run for each row of a reference's head.

    Raises:
        UserError: it knows a class to forget, lacks a class of retain or learn, or one fits two.
    """
    index = LabelIndex(id2label)
    known = [names[c] for c in class_ids.get("forget", ()) if _find(index, names[c])]
    if known:
        raise UserError(
            f"--reference: {source} has {listed(known)} among its labels, which the run forgets; a "
            "reference never saw them, name one trained without"
        )
    rows = [-1] * len(id2label)
    lacking = []
    for role in ("retain", "learn"):
        for class_id in class_ids.get(role, ()):
            found = _find(index, names[class_id])
            if len(found) == 1:
                rows[found[0]] = class_id
            else:
                lacking.append(names[class_id])
    if lacking:
        raise UserError(
            f"--reference: {source} lacks {listed(lacking)} (or has it twice), which the run "
            f"learned or retained; it knows {listed(id2label.values(), 8)}. Name a model trained "
            "on the classes of retain and learn"
        )
    return tuple(rows)


def _find(index: LabelIndex, name: str) -> tuple[int, ...]:
    """Return the rows that a label of the run, or one of its synonyms, means."""
    found = index.find(name)
    if found or "," not in name:
        return found
    return tuple(sorted({row for part in name.split(",") for row in index.find(part.strip())}))


def describe(reference: Reference | None, base: Subject, subject: Subject | None) -> dict[str, Any]:
    """Return what results.json says of the reference, and whether it is valid.

    A reference whose retain score is further than 1 point from the base's, beyond what the images
    read leave open, is not valid: it is another model, not the base without the classes.
    """
    if reference is None or subject is None:
        note = NOTES["R3"] if control_of(base) else "none, and no class to learn is a control"
        return {"level": "R3", "model": None, "valid": False, "note": note}
    gap = _gap(base, subject)
    note = NOTES[reference.level]
    valid = True
    if gap is None:
        note += "; not compared with the base on retain: fewer than two test units"
        valid = False
    else:
        valid = gap.low <= _MOST_APART and gap.high >= -_MOST_APART
        note += (
            f"; retain score {gap.mean:+.3f} against the base ({gap.low:+.3f} to {gap.high:+.3f}, "
            f"{gap.n} units), wanted within {_MOST_APART}"
        )
    return {
        "level": reference.level,
        "model": one_line(reference.loaded.source),
        "valid": valid,
        "note": note,
    }


def _gap(base: Subject, subject: Subject) -> Interval | None:
    one, other = subject.of("retain", "test"), base.of("retain", "test")
    if one is None or other is None or len(one) < LEAST_UNITS:
        return None
    return paired_difference(one.hits(), other.hits())

"""Scores of a run's model, and what figures and report are drawn from."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from kswap.arrays import StageArrays, write_examples, write_stage
from kswap.evaluation import score_sets, summary
from kswap.evaluation.examples import choose, examples_of, fit_answer
from kswap.running.state import RunState
from kswap.settings import Role, Split
from kswap.tasks import Scores


def scored(state: RunState, name: str, model: Any, num_rows: int) -> dict[str, Any]:
    """Score a model by its first rows; return the record of a stage for results.json."""
    begin = time.perf_counter()
    splits: list[Split] = ["test"]
    if state.config.training.score_validation:
        splits.append("validation")
    chosen = choose(state.data, seed=state.config.seed)
    found = {}
    for split in splits:
        knowing = state.prefixes.scoring_base if name == "base" else state.prefixes.scoring
        with knowing(model) if split == "test" else nullcontext():
            found[split] = score_sets(
                model,
                state.task,
                state.data,
                split=split,
                num_rows=num_rows,
                batch_size=state.config.training.eval_batch_size,
                pixels=state.pixels,
                keep=chosen if split == "test" else None,
            )
    _keep(state, name, found["test"], chosen)
    state.spent("score", begin)
    record = {"name": name, **summary(found["test"], state.data)}
    if "validation" in found:
        record["validation"] = summary(found["validation"], state.data)
    return record


def _keep(
    state: RunState, name: str, scored: Mapping[Role, Scores], chosen: Mapping[Role, Sequence[int]]
) -> None:
    """Write what figures and report of a stage are drawn from."""
    examples = examples_of(state.data, chosen)
    if name == "base":
        labels, unit = state.data.id2label, state.task.counts
        state.written(write_examples(state.folder.arrays, examples, labels=labels, unit=unit))
    kept = [marks for role in chosen for marks in scored[role].kept]
    answers = tuple(fit_answer(m, e) for m, e in zip(kept, examples, strict=True))
    confusion = {row: counts for one in scored.values() for row, counts in one.confusion.items()}
    state.written(write_stage(state.folder.arrays, name, StageArrays(answers, confusion)))

"""What a finished run leaves: adapter, merged model, model card, figures, report, results.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kswap._version import __version__
from kswap.evaluation import score_roles
from kswap.models import artefact
from kswap.models.licence import license_of
from kswap.objectives.sparsity import num_zero_groups
from kswap.report.card import write_card
from kswap.report.figures import draw_figures
from kswap.report.page import write_report
from kswap.run_folder import write_results
from kswap.running.model import adapted
from kswap.running.state import RunState
from kswap.settings import forgets
from kswap.training.checkpoint import prune
from kswap.training.device import peak_memory_bytes


def save(
    state: RunState, swapped: Any, groups: Mapping[str, Any], whole_base: Any
) -> dict[str, Any]:
    """Write adapter, merged model, model card and, last, results.json."""
    if not state.accelerator.is_main_process:
        return {}
    begin = time.perf_counter()
    if whole_base is not None:  # the base does not train: what trained is put on it
        trained = artefact.trainable_state(swapped)
        swapped = adapted(state, whole_base)
        artefact.load_trainable_state(swapped, trained)
    names = state.data.names
    aimed_at = names["forget"] if forgets(state.config.order) else []
    forgotten = sorted({*state.loaded.forgotten, *aimed_at})
    processor = state.loaded.processor
    whole, saved = _in_full_precision(state, swapped)
    known = {"version": __version__, "learned": names["learn"], "forgotten": forgotten}
    artefact.save_adapter(
        whole,
        state.folder.path / "adapter",
        base_name=state.loaded.source,
        processor=processor,
        kswap=known,
    )
    artefact.save_merged(whole, state.folder.path / "model", processor=processor, kswap=known)
    state.spent("save", begin)
    drawn_from = {"stages": state.position.stages, "classes": names}
    _drawn(state, "figures/", draw_figures, drawn_from)
    state.seconds["total"] = sum(v for k, v in state.seconds.items() if k != "total")
    results = {
        "kswap_version": __version__,
        "task": state.task.name,
        "score_name": state.task.score_name,
        "seed": state.config.seed,
        "order": state.config.order,
        "preset": state.config.preset,
        "classes": names,
        "stages": state.position.stages,
        "seconds": {phase: round(value, 3) for phase, value in state.seconds.items()},
        "peak_memory_bytes": peak_memory_bytes(state.accelerator.device),
        "trainable_parameters": sum(p.numel() for p in swapped.parameters() if p.requires_grad),
        "groups": {"total": len(groups), "zero": num_zero_groups(groups.values())},
        "images": {
            role: {split: len(images) for split, images in splits.items()}
            for role, splits in state.data.sets.items()
        },
        **({"streamed": sorted(state.data.streamed)} if state.data.streamed else {}),
        **({"in_memory": list(state.data.in_memory)} if state.data.in_memory else {}),
        "base": {
            "model": state.loaded.source,
            "digest": state.base_digest,
            "license": None,
            **license_of(state.loaded.source),
            "weights": state.config.training.base_weights,
            "forgotten": sorted(state.loaded.forgotten),
        },
        **saved,
        "notes": [*state.data.notes, *_notes_on_weights(state, saved)],
        "audit": {},
    }
    write_card(state.folder.path, results)
    _drawn(state, "report.html", write_report, results)
    prune(state.folder.checkpoints, keep=1)
    write_results(state.folder, results, anew=True)
    return results


def _in_full_precision(state: RunState, swapped: Any) -> tuple[Any, dict[str, Any]]:
    """Return the adapter on the base that is saved, and its scores where it trained on another.

    A base in 8 or 4 bits answers otherwise than in full precision, so that the adapter on the
    latter has scores of its own, under `saved` in results.json.
    """
    if state.config.training.base_weights == "fp32":
        return swapped, {}
    begin = time.perf_counter()
    whole = adapted(state, state.loaded.model)  # on the CPU until now, its head as it came
    artefact.load_trainable_state(whole, artefact.trainable_state(swapped))
    scored = score_roles(
        artefact.merged_model(whole).to(state.accelerator.device),
        state.task,
        state.data,
        split="test",
        num_rows=len(state.data.id2label),
        batch_size=state.config.training.eval_batch_size,
        pixels=state.pixels,
    )
    state.spent("score", begin)
    return whole, {"saved": {"weights": "fp32", **scored}}


def _notes_on_weights(state: RunState, saved: Mapping[str, Any]) -> list[str]:
    """Return what a reader of the scores has to know of what was scored."""
    if not saved:
        return []
    scores = saved["saved"]["scores"]
    said = ", ".join(f"{r} {100 * s:.1f}" for r, s in scores.items() if s is not None)
    return [
        f"the stages were trained and scored on a base held in "
        f"{state.config.training.base_weights}; adapter/ and model/ are on the base in full "
        f"precision, where the scores are: {said}"
    ]


def _drawn(
    state: RunState,
    what: str,
    draw: Callable[[Path, Mapping[str, Any]], Any],
    results: Mapping[str, Any],
) -> None:
    """Draw; where that fails the run is still whole, and the user is told."""
    begin = time.perf_counter()
    try:
        draw(state.folder.path, results)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the drawing
            raise
        state.on_note(
            f"{what} could not be drawn ({type(error).__name__}: {error}); all else is whole, "
            "and `kswap report RUN` draws it from what was kept"
        )
    state.spent("figures", begin)

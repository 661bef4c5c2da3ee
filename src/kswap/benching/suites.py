"""The suite of a bench: what its runs share, from a demo or from a YAML config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kswap.benching.arms import Arm
from kswap.config import SwapConfig
from kswap.demo import demo_values, write_demo
from kswap.errors import UserError
from kswap.settings import TASKS
from kswap.yaml_text import merge, read_yaml

DEMOS = TASKS
"""There is one for each task."""


def suite_values(
    suite: str | Path, output: Path, over: Mapping[str, Any]
) -> Callable[[Arm], Mapping[str, Any]]:
    """Return arm -> what its runs share; write the model and pictures of a demo.

    A resolved config (RUN/config.yaml) serves the arms of its own preset alone: those of others are
    refused with a UserError, as its values would stand in the place of theirs.

    Args:
        suite: name of a demo, or a YAML config.
        output: folder of the bench.
        over: what the user gave besides.

    Raises:
        UserError: the config cannot be read, or a value is what a bench varies.
    """
    for key in ("preset", "order", "seed", "output"):
        if key in over:
            raise UserError(f"--{key}: is what a bench varies; use --{key}s (or --output DIR)")
    if str(suite) in DEMOS:
        task = str(suite)
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--output: {output} cannot be written to ({error.strerror}); name another folder"
            ) from None
        write_demo(task, output / "demo")
        return lambda arm: merge(demo_values(task, output / "demo", arm.preset), over)
    if _is_missing(Path(suite)):
        raise UserError(
            f"{suite}: there is no such file; name a YAML config, or {', '.join(DEMOS[:-1])} or "
            f"{DEMOS[-1]}, which ship with kswap"
        )
    values = read_yaml(suite)
    resolved = "environment" in values or set(SwapConfig.model_fields) <= set(values)
    own = values.get("preset")
    for key in ("environment", "preset", "order", "seed", "output"):
        values.pop(key, None)
    merged = merge(values, over)

    def shared(arm: Arm) -> Mapping[str, Any]:
        if resolved and arm.preset != own:  # nobody can tell what the user gave: all is written out
            raise UserError(
                f"{suite}: this is a run's resolved config, in which preset {own!r} is written "
                f"out, so that it cannot be compared with {arm.preset!r}; give the YAML that the "
                f"run was started from, or --presets {own}"
            )
        return merged

    return shared


def _is_missing(path: Path) -> bool:
    """Whether nothing is there; whatever else is wrong is said by who reads it."""
    try:
        return not path.exists()
    except (OSError, ValueError):  # a name too long, a null byte
        return False

"""The demo: a swap on what ships with the package; no network.

`assets/` holds a slice of CIFAR-10, a small vision transformer that knows seven of its classes, and
the
reference that never saw the classes to forget; scripts/make_demo_classification.py made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kswap.config import SwapConfig
from kswap.errors import UserError

_ASSETS = Path(__file__).parent / "assets"


def demo_config(task: str, output: Path, overrides: Sequence[str] = ()) -> SwapConfig:
    """Return the config of a demo; its base model is written beside the run, as OUTPUT-base.

    Raises:
        UserError: an override is wrong or the folder cannot be written.
    """
    from kswap.demo.packing import write_model
    from kswap.files import disk_errors

    assets = _ASSETS / task
    images = {"train": str(assets / "train.parquet"), "test": str(assets / "test.parquet")}
    base = output.with_name(output.name + "-base")
    # Photographs of new classes show how the base tells its own ones apart where it did not train.
    known = {"roles": ["learn"], "objective": "restricted_distillation", "weight": 1.0}
    config = SwapConfig.from_mapping(
        {
            "model": str(base),
            "learn": {"data": images, "classes": ["horse", "ship", "truck"]},
            "forget": {"data": images, "classes": ["cat", "frog"]},
            "retain": {"data": images},
            "data": {"augment": "flip"},  # photographs may be mirrored
            "head": {"margin": 0.5},  # chosen on images of CIFAR-10 that are in neither split
            "stages": {  # as long as 90 s allow
                "learn": {"epochs": 2.5, "terms": {"known": known}},
                "forget": {"epochs": 1.4, "terms": {"known": known}},
            },
            "output": str(output),
        },
        overrides,
    )
    # One that is there is of the same command before, or of its user.
    if not (base / "model.safetensors").exists():
        with disk_errors(f"output {base}"):
            try:
                write_model(assets / "base", base)
            except (ValueError, PermissionError, FileExistsError, NotADirectoryError) as error:
                raise UserError(f"output: {error}") from None
    return config

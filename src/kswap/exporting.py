"""The swapped model for deployment: a standard folder.

Without the forgotten rows, and as ONNX, if asked for.
"""

from __future__ import annotations

import errno
from pathlib import Path

from kswap.errors import UserError
from kswap.files import disk_errors, write_folder
from kswap.manifest import check_files
from kswap.models.artefact import load
from kswap.models.export import export_onnx
from kswap.models.head import drop_rows
from kswap.models.loading import quiet, task_of


def export(
    run_dir: Path, to_dir: Path, *, onnx: bool = False, drop_forgotten: bool = False
) -> list[Path]:
    """Write the model of a finished run to a new folder and return the files.

    Args:
        run_dir: a run folder.
        to_dir: must not exist, or be empty.
        onnx: also write model.onnx, checked against the model by onnxruntime.
        drop_forgotten: remove the rows of forgotten classes; the ids behind them move up.

    Raises:
        UserError: the run is not finished, the folder exists, or too few classes would be left.
    """
    try:
        inside = run_dir.resolve() in (to_dir.resolve(), *to_dir.resolve().parents)
        occupied = to_dir.exists() and (not to_dir.is_dir() or any(to_dir.iterdir()))
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be read
        raise _not_writable(to_dir, error) from None
    if inside:
        raise UserError(f"--to: {to_dir} is within the run {run_dir}; name a folder outside of it")
    if occupied:
        raise UserError(f"--to: {to_dir} exists already; name a new or empty folder")
    model, processor = load(run_dir)
    check_files(run_dir, "config.yaml", "adapter")
    swapped = dict(getattr(model.config, "kswap", None) or {})
    if drop_forgotten:
        forgotten = set(swapped.get("forgotten", ()))
        ids = [int(i) for i, name in model.config.id2label.items() if name in forgotten]
        if len(ids) == len(model.config.id2label):
            raise UserError(
                f"--drop-forgotten: all {len(ids)} classes of {run_dir} are forgotten, "
                "none would be left; export without it"
            )
        if len(ids) == len(model.config.id2label) - 1 and task_of(model) == "classification":
            raise UserError(
                f"--drop-forgotten: {len(ids)} of {len(ids) + 1} classes of {run_dir} are "
                "forgotten, and a classifier has at least two; export without it"
            )
        dropped = [*swapped.get("dropped", ()), *swapped.get("forgotten", ())]
        drop_rows(model, ids)
        model.config.kswap = {**swapped, "forgotten": [], "dropped": dropped}

    def write(folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        if onnx:
            try:
                export_onnx(model, processor, folder / "model.onnx")
            except RuntimeError as error:  # no exporter takes this family
                raise UserError(f"--onnx: {error}; export without it") from None

    with disk_errors(f"--to {to_dir}"):
        try:
            write_folder(to_dir, write)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _not_writable(to_dir, error) from None
    return sorted(path for path in to_dir.rglob("*") if path.is_file())


def _not_writable(to_dir: Path, error: Exception) -> UserError:
    return UserError(f"--to: {to_dir} cannot be written to ({error}); name another folder")

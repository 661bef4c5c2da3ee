"""What an audit begins with: the models, the images and the reference of a finished run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kswap.audits.findings import Level
from kswap.audits.fine_tuning import train_reference
from kswap.audits.references import Reference, beside, load_reference
from kswap.audits.subjects import ReferenceLevel
from kswap.config import SwapConfig
from kswap.data import SwapData, build_data
from kswap.data.text import listed
from kswap.errors import UserError
from kswap.models import artefact
from kswap.models.fits import check_fits
from kswap.models.loading import Loaded, load_base
from kswap.run_folder import check_classes, check_data_is_named
from kswap.settings import ROLES, Role
from kswap.tasks import Pixels
from kswap.training.checkpoint import weights_digest
from kswap.training.device import make_accelerator
from kswap.training.progress import progress

Note = Callable[[str], None]


@dataclass
class Work:
    """What a run left, loaded."""

    config: SwapConfig
    results: Mapping[str, Any]
    base: Loaded
    data: SwapData
    swapped: Any
    device: Any
    level: Level
    seed: int
    reference: Reference | None = None
    reference_data: SwapData | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def class_ids(self) -> dict[Role, tuple[int, ...]]:
        """Classes of each role that have images."""
        return {
            role: tuple(self.data.class_ids.get(role, ()))
            for role in ROLES
            if role in self.data.sets
        }

    @property
    def swapped_rows(self) -> list[int]:
        """Row of the run for each row of the swapped model: the run's rows are its rows."""
        return list(range(len(self.data.id2label)))

    def load_reference(self, source: str, level: ReferenceLevel) -> Reference:
        """Load a reference for this run; see `references.load_reference`."""
        return load_reference(
            source,
            level,
            task=self.base.task,
            names=self.data.id2label,
            class_ids=self.class_ids,
            saw={"the run's base": self.base.model, "the run's own model": self.swapped},
        )


def load_run(run_dir: Path, results: Mapping[str, Any], *, level: Level, seed: int) -> Work:
    """Load the models and read the images of a run, as `kswap.evaluate` does."""
    config = SwapConfig.from_yaml(run_dir / "config.yaml")
    base = load_base(config.model)
    config = config.for_task(base.task)
    check_data_is_named(run_dir, config, results, verb="audit")
    if results.get("base", {}).get("digest", "") not in ("", weights_digest(base.model)):
        raise UserError(
            f"{run_dir}: the weights of {config.model} are not those that the run began with (they "
            "have changed, or a model was given in memory); restore them"
        )
    swapped, processor = artefact.load(run_dir)
    base = replace(base, processor=processor)  # the run's own, also where it was given in memory
    data = _read(config, base, processor)
    check_classes(run_dir, data.names, results)
    labels = {int(i): str(name) for i, name in swapped.config.id2label.items()}
    if labels != data.id2label:
        raise UserError(
            f"{run_dir}: the labels of model/ are not those of the run "
            f"({listed(labels.values(), 5)}); restore what the run saved"
        )
    accelerator = make_accelerator(config.training, run_dir)
    return Work(config, results, base, data, swapped, accelerator.device, level, seed)


def _read(config: SwapConfig, base: Loaded, processor: Any) -> SwapData:
    with progress("images") as report:
        return build_data(
            config,
            task=base.task,
            id2label=base.id2label,
            processor=processor,
            forgotten=base.forgotten,
            on_progress=report,
        )


def find_reference(
    work: Work,
    run_dir: Path,
    named: str | Path | None,
    level: ReferenceLevel | None,
    *,
    train: bool,
    on_note: Note,
) -> Reference | None:
    """Return the reference that was named, or lies beside the run; None: there is none."""
    if train and named is None:
        raise UserError(
            "--train-reference: the base saw the classes to forget, and nothing that is trained on "
            "from it is a reference (R3); name the pretrained backbone that never saw them with "
            "--reference"
        )
    if train and "forget" not in work.class_ids:
        raise UserError("--train-reference: the run forgets nothing; leave it out")
    if train:
        with progress("reference") as report:
            named = train_reference(
                str(named),
                run_dir.resolve().with_name(f"{run_dir.resolve().name}-reference"),
                work.base,
                work.data,
                pixels=pixels_of(work.data, work.device),
                device=work.device,
                batch_size=work.config.training.eval_batch_size,
                seed=work.seed,
                report=report,
            )
        level = "R2"
    if named is not None:
        return work.load_reference(str(named), level or "R2")
    path = beside(run_dir.resolve())
    if path is None:
        return None
    try:
        return work.load_reference(str(path), level or "R2")
    except UserError as error:
        on_note(f"the model beside the run is not used as its reference: {error}")
        return None


def fit_reference_data(work: Work) -> None:
    """Read the images again where the reference's processor makes something else of them.

    Raises:
        UserError: it finds other images, or some that the reference does not take.
    """
    if work.reference is None:
        return
    loaded = work.reference.loaded
    ours, theirs = (
        {k: v for k, v in p.to_dict().items() if not k.endswith("_type") and k[0] != "_"}
        for p in (work.base.processor, loaded.processor)
    )
    if ours != theirs:
        _read_for_reference(work)
    data = work.reference_data or work.data
    try:
        with torch.no_grad():
            check_fits(loaded.model, data.pixels(_some_images(data)), loaded.source)
    except UserError as error:
        raise UserError(f"--reference: {str(error).removeprefix('model: ')}") from None


def _some_images(data: SwapData) -> Any:
    return next(iter(data.sets.values()))["train"].images[:1]


def _read_for_reference(work: Work) -> None:
    assert work.reference is not None
    data = _read(work.config, work.base, work.reference.loaded.processor)
    for role, splits in work.data.sets.items():
        for split, images in splits.items():
            if (data.sets[role][split].class_ids != images.class_ids).any():
                raise UserError(
                    f"--reference: its image processor reads the {split} images of {role} "
                    "otherwise than the base's; give it the base's preprocessor_config.json"
                )
    work.reference_data = data


def pixels_of(data: SwapData, device: Any) -> Pixels:
    """Return what puts images on a device."""
    return partial(data.pixels, device=device)

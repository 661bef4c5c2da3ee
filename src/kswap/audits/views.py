"""Looking at a model once more with something about it changed: fewer images, the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from kswap.audits.features import Observed, Sets, observe
from kswap.audits.precision import as_variant
from kswap.audits.sampling import spread
from kswap.audits.subjects import Subject, SubjectName
from kswap.audits.units import units_of
from kswap.data import ImageSet
from kswap.data.sets import subset
from kswap.settings import AdapterConfig, Role, Split

_FEW: Mapping[tuple[Role, Split], int] = {
    ("forget", "train"): 30,
    ("forget", "test"): 60,
    ("retain", "train"): 40,
    ("retain", "test"): 60,
}


@dataclass(frozen=True)
class Again:
    """What it takes to look at the models again."""

    task: str
    models: Mapping[SubjectName, Observed]
    sets: Mapping[SubjectName, Sets]
    class_ids: Mapping[Role, Sequence[int]]
    batch_size: int
    seed: int
    names: Mapping[int, str]
    """Row of the run -> class name."""
    num_forget: int
    """Forget-train images of the run."""
    adapter: AdapterConfig
    own_lora: Mapping[str, Tensor] = field(default_factory=dict)
    """Matrices of the run's adapter, as merged into the swapped model; empty: it is gone."""
    factor: int = 1
    """Times as many images as a standard audit reads again."""

    def few(self, name: SubjectName) -> Sets:
        """Return some of the images that the audit read, the same ones of every model."""
        few: dict[Role, dict[Split, ImageSet]] = {}
        for (role, split), limit in _FEW.items():
            images = self.sets[name].get(role, {}).get(split)
            if images is not None and len(images):
                rows = spread(images.class_ids, limit * self.factor, max_classes=None, seed=0)
                few.setdefault(role, {})[split] = subset(images, rows)
        return few

    def look(self, name: SubjectName, observed: Observed | None = None) -> Subject:
        """Return what a model, or a changed one in its place, makes of these images."""
        return observe(
            name,
            observed or self.models[name],
            self.few(name),
            units_of(self.task),
            class_ids=self.class_ids,
            batch_size=self.batch_size,
        )

    def variants(self) -> Callable[[SubjectName, str], Subject]:
        """Return what looks at a model with its weights changed."""

        def look(name: SubjectName, variant: str) -> Subject:
            with as_variant(self.models[name].model, variant, seed=self.seed):
                return self.look(name)

        return look

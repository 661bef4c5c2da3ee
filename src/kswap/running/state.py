"""What every part of a run reads, and where the run stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from kswap.config import SwapConfig
from kswap.data import SwapData
from kswap.files import digest_of
from kswap.models.loading import Loaded
from kswap.models.structure import FfnBlock
from kswap.plan import Stage
from kswap.ranks import shards_base
from kswap.run_folder import RunFolder
from kswap.signals import Interrupts
from kswap.tasks import Task
from kswap.training.checkpoint import Position
from kswap.training.prefix_cache import CacheSettings
from kswap.training.prefixes import Prefixes


@dataclass
class RunState:
    """What a run is made of, and where it stands between its steps."""

    config: SwapConfig
    stages: tuple[Stage, ...]
    folder: RunFolder
    loaded: Loaded
    data: SwapData
    accelerator: Any
    interrupts: Interrupts
    on_note: Callable[[str], None]
    seconds: dict[str, float]
    """By phase."""
    task: Task
    position: Position = field(default_factory=Position)
    base_digest: str = ""
    """Checksum of the base's weights, before anything is done to them."""
    heads: tuple[str, ...] = ()
    blocks: tuple[FfnBlock, ...] = ()
    prefixes: Prefixes = field(init=False)

    def __post_init__(self) -> None:
        """Say where and how much may be kept of what does not train."""
        training, data = self.config.training, self.config.data
        settings = CacheSettings(
            training.prefix_cache and not shards_base(),
            data.augment,
            training.views,
            training.eval_batch_size,
            data.memory_limit_bytes,
            training.prefix_limit_bytes,
            mixed_precision=training.precision != "fp32",
        )
        self.prefixes = Prefixes(settings, self.folder.cache, self.on_note)

    def num_rows(self, knows_learned: bool) -> int:
        """Return how many rows of the head take part."""
        return len(self.data.id2label) if knows_learned else self.data.num_base_classes

    def pixels(self, images: Any, *, sizes: Any = None) -> Tensor:
        """Return what the model takes, (images, 3, height, width), where it trains."""
        pixels: Tensor = self.data.pixels(images, device=self.accelerator.device, sizes=sizes)
        return pixels

    def written(self, paths: Sequence[Path]) -> None:
        """Keep the checksums of files that are not written again."""
        for path in paths:
            name = path.relative_to(self.folder.path).as_posix()
            self.position.files[name] = digest_of(path)

    def spent(self, phase: str, begin: float) -> None:
        """Add the seconds since `begin` (`time.perf_counter`) to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begin

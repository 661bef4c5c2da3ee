"""kswap: a pretrained vision model learns new classes, forgets named ones and retains the rest.

The names below are loaded when they are first used: `import kswap` imports neither torch nor
transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kswap._version import __version__

_WHERE = {
    "SwapConfig": "kswap.config",
    "UserError": "kswap.errors",
    "SwapResult": "kswap.swapping",
    "bench": "kswap.benching.bench",
    "swap": "kswap.swapping",
    "load": "kswap.models.artefact",
    "evaluate": "kswap.swapping",
    "draw_report": "kswap.report.page",
    "audit": "kswap.auditing",
    "audit_runs": "kswap.auditing",
}
__all__ = [
    "SwapConfig",
    "SwapResult",
    "UserError",
    "__version__",
    "audit",
    "audit_runs",
    "bench",
    "draw_report",
    "evaluate",
    "load",
    "swap",
]

if TYPE_CHECKING:
    from kswap.auditing import audit, audit_runs
    from kswap.benching.bench import bench
    from kswap.config import SwapConfig
    from kswap.errors import UserError
    from kswap.models.artefact import load
    from kswap.report.page import draw_report
    from kswap.swapping import SwapResult, evaluate, swap


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'kswap' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

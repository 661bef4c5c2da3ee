"""What a number depends on besides the config, versions and commits; what memory a run took."""

from __future__ import annotations

import contextlib
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from kswap._version import __version__


def describe_environment(*, model_commit: str | None) -> dict[str, Any]:
    """Return versions of what computes, and commits.

    The commit of kswap is from a checkout, that of the model from the hub.
    """
    packages = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "pillow")
    return {
        "kswap": __version__,
        "commit": _commit(),
        "model_commit": model_commit,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def _commit() -> str | None:
    """Return the commit of the checkout this package lies in; None where it is in none."""
    here = Path(__file__).resolve().parent
    if here.parent.name != "src":
        return None
    try:
        asked = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return asked.stdout.strip()


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process.

    Linux is asked where it says that of this process alone: getrusage's begins at what the process
    held that started this one.
    """
    with contextlib.suppress(OSError), Path("/proc/self/status").open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

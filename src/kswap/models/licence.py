"""The licence of a base model, where its own model card says it."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError


def license_of(name_or_path: str) -> str | None:
    """Return `license` of the card's metadata; None where there is no card, or it does not say.

    Of a hub id the card is read only where it was downloaded already.
    """
    try:
        text = _card(name_or_path)
    except (OSError, ValueError):  # no such path, bytes that are no text
        return None
    if text is None or not text.startswith("---"):
        return None
    try:
        metadata = yaml.safe_load(text.split("---", 2)[1])
    except yaml.YAMLError:
        return None
    found = metadata.get("license") if isinstance(metadata, dict) else None
    return found if isinstance(found, str) else None


def _card(name_or_path: str) -> str | None:
    folder = Path(name_or_path)
    if folder.is_dir():
        path = folder / "README.md"
    else:
        try:
            cached = try_to_load_from_cache(name_or_path, "README.md")
        except HFValidationError:  # a model in memory has a name that is no hub id
            return None
        if not isinstance(cached, str):
            return None
        path = Path(cached)
    return path.read_text(encoding="utf-8") if path.is_file() else None

"""The licence of a base model, where its own model card says it."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

_KEYS = ("license", "license_name", "license_link")
"""In the metadata of a card; where the first is `other`, the second and third say which."""


def license_of(name_or_path: str) -> dict[str, str]:
    """Return what the card's metadata says of the licence; nothing where there is no card.

    Of a hub id the card is read only where it was downloaded already.
    """
    try:
        text = _card(name_or_path)
    except (OSError, ValueError):  # no such path, bytes that are no text
        return {}
    if text is None or not text.startswith("---"):
        return {}
    try:
        metadata = yaml.safe_load(text.split("---", 2)[1])
    except yaml.YAMLError:
        return {}
    said = metadata if isinstance(metadata, dict) else {}
    found = {key: said[key] for key in _KEYS if isinstance(said.get(key), str)}
    if not found.get("license_link", "").startswith("https://"):  # a file beside the base's card
        found.pop("license_link", None)
    return found


def _card(name_or_path: str) -> str | None:
    folder = Path(name_or_path)
    if folder.is_dir():
        of_run = folder.name == "model" and (folder.parent / "results.json").is_file()
        path = (folder.parent if of_run else folder) / "README.md"
    else:
        try:
            cached = try_to_load_from_cache(name_or_path, "README.md")
        except HFValidationError:  # a model in memory has a name that is no hub id
            return None
        if not isinstance(cached, str):
            return None
        path = Path(cached)
    return path.read_text(encoding="utf-8") if path.is_file() else None

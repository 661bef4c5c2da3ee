"""A font for any name: DejaVu Sans, which ships with matplotlib, else one of the system's.

DejaVu has Latin, Greek, Cyrillic, Arabic and Hebrew; for other scripts the installed fonts are
looked through. What no font has is drawn as an empty box; the report, where the browser chooses,
has the names as text.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

_WIDELY_DRAWN = 0x250
"""Characters before this one (Latin) are in every font."""


@functools.cache
def font(size: int, text: str = "", *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return a font of `size` pixels that has the characters of `text`."""
    return ImageFont.truetype(font_path(text, bold=bold), size)


@functools.cache
def font_path(text: str = "", *, bold: bool = False) -> str:
    """Return the file of a font that has the characters of `text`."""
    usual = _dejavu(bold)
    rare = {ord(character) for character in text if ord(character) >= _WIDELY_DRAWN}
    if not rare or rare <= _characters(usual):
        return usual
    from matplotlib.font_manager import fontManager

    for entry in fontManager.ttflist:
        if "LastResort" not in entry.fname and rare <= _characters(entry.fname):
            return entry.fname
    return usual


def shorten(text: str, width: float, size: int, *, bold: bool = False) -> str:
    """Return `text` on one line, its middle left out where it is wider than `width` pixels."""
    text = " ".join(text.split())
    used = font(size, text, bold=bold)
    if used.getlength(text) <= width:
        return text
    kept = len(text) - 1
    while kept > 1:
        head = text[: (kept + 1) // 2] + "…" + text[len(text) - kept // 2 :]
        if used.getlength(head) <= width:
            return head
        # a guess from the measured width, then one by one
        kept = min(kept - 1, int(kept * width / used.getlength(head)) + 1)
    return "…"


@functools.cache
def _dejavu(bold: bool) -> str:
    spec = find_spec("matplotlib")  # its files, without importing it
    assert spec is not None
    assert spec.origin is not None
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return str(Path(spec.origin).parent / "mpl-data/fonts/ttf" / name)


@functools.cache
def _characters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # a broken or strange font of the system
        return frozenset()

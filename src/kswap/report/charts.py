"""Line charts as inline SVG: no script, no font, no picture; colours are those of the page.

Lines differ by colour and by dashes. Words of users (names of series) stand in the page's legend,
never in the SVG.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

_WIDTH, _HEIGHT = 380, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 26, 42
_MOST_POINTS = 240
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 4", "1 5", "7 3 1 3 1 3")
"""As many as the page has colours (`--s0` ...)."""


@dataclass(frozen=True)
class Line:
    """One series, as the legend shows it."""

    name: str
    style: int
    """Colour and dashes."""
    dash: str
    last: str
    """Its last value."""


@dataclass(frozen=True)
class Chart:
    """A chart, ready for the page."""

    title: str
    svg: Markup
    lines: tuple[Line, ...]
    head: tuple[str, ...]
    """Header of the table that says the same as the picture."""
    rows: tuple[tuple[str, ...], ...]


def line_chart(
    title: str,
    x: Sequence[Any],
    series: Mapping[str, Sequence[Any]],
    *,
    x_label: str = "",
    y_label: str = "",
    marks: Sequence[tuple[float, str]] = (),
    unit_interval: bool = False,
    styles: Mapping[str, int] | None = None,
) -> Chart:
    """Return a chart; what is not finite is a gap in its line.

    Args:
        title: above it, and its name for screen readers.
        x: positions; words stand at equal distances.
        series: by name, one value for each position.
        x_label: below the axis.
        y_label: above the axis.
        marks: upright lines with a short word, where a stage begins.
        unit_interval: whether the axis is that of shares, from 0 to 1.
        styles: number of colour and dashes by name, in place of the order.
    """
    words = [str(v) for v in x] if any(not _is_number(v) for v in x) else None
    places = list(range(len(x))) if words is not None else [float(v) for v in x]
    values = {name: [_number(v) for v in line] for name, line in series.items()}
    finite = [v for line in values.values() for v in line if v is not None]
    low, high = _range(finite, unit_interval=unit_interval)
    left, right = (min(places), max(places)) if places else (0.0, 1.0)
    right = right if right > left else left + 1
    frame = _Frame(left, right, low, high)
    parts = [*_axes(frame, places, words, x_label, y_label), *_marks(frame, marks)]
    lines = []
    for number, (name, line) in enumerate(values.items()):
        style = (styles or {}).get(name, number) % len(_DASHES)
        points = _thinned(places, line)
        parts += _strokes(frame, points, style)
        known = [v for v in line if v is not None]
        last = format_number(known[-1]) if known else "not available"
        lines.append(Line(name, style, _DASHES[style], last))
    svg = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}" class="chart">{"".join(parts)}</svg>'
    )
    head = (x_label or "x", *series)
    return Chart(title, Markup(svg), tuple(lines), head, _table(x, values))


@dataclass(frozen=True)
class _Frame:
    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        part = (value - self.left) / (self.right - self.left)
        return round(_LEFT + part * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return round(_HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM), 1)


def _axes(
    frame: _Frame,
    places: Sequence[float],
    words: Sequence[str] | None,
    x_label: str,
    y_label: str,
) -> list[str]:
    parts = []
    end = _WIDTH - _RIGHT
    for tick in ticks(frame.low, frame.high, 4):
        y = frame.y(tick)
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{end}" y2="{y}" class="grid"/>')
        parts.append(_text(_LEFT - 6, y + 4, _tick(tick), "end"))
    floor = _HEIGHT - _BOTTOM
    if words is None:
        parts += [
            _text(frame.x(tick), floor + 16, _tick(tick), "middle")
            for tick in ticks(frame.left, frame.right, 5)
        ]
    else:
        step = max(1, math.ceil(len(words) / 6))
        for place, word in list(zip(places, words, strict=True))[::step]:
            anchor = "start" if place == 0 else "end" if place == len(words) - 1 else "middle"
            parts.append(_text(frame.x(place), floor + 16, word[:14], anchor))
    parts.append(f'<line x1="{_LEFT}" y1="{floor}" x2="{end}" y2="{floor}" class="axis"/>')
    if x_label:
        parts.append(_text((_LEFT + end) / 2, _HEIGHT - 6, x_label[:60], "middle"))
    if y_label:
        parts.append(_text(2, 12, y_label[:60], "start"))
    return parts


def _marks(frame: _Frame, marks: Sequence[tuple[float, str]]) -> list[str]:
    parts = []
    for place, word in marks:
        x = frame.x(place)
        parts.append(f'<line x1="{x}" y1="{_TOP}" x2="{x}" y2="{_HEIGHT - _BOTTOM}" class="mark"/>')
        parts.append(_text(x + 4, _TOP + 9, word[:14], "start"))
    return parts


def _strokes(frame: _Frame, points: Sequence[tuple[float, float | None]], style: int) -> list[str]:
    """Return the line, broken where a value is missing; a lone point is a dot."""
    runs: list[list[tuple[float, float]]] = [[]]
    for place, value in points:
        if value is None:
            runs.append([])
        else:
            runs[-1].append((frame.x(place), frame.y(value)))
    parts = []
    for run in filter(None, runs):
        if len(run) == 1:
            parts.append(f'<circle cx="{run[0][0]}" cy="{run[0][1]}" r="3" class="f{style}"/>')
            continue
        joined = " ".join(f"{a},{b}" for a, b in run)
        dash = f' stroke-dasharray="{_DASHES[style]}"' if _DASHES[style] else ""
        parts.append(f'<polyline points="{joined}" class="l l{style}"{dash}/>')
    return parts


def _thinned(
    places: Sequence[float], line: Sequence[float | None]
) -> list[tuple[float, float | None]]:
    """Return at most _MOST_POINTS points; each stands for the mean of its neighbours."""
    points = list(zip(places, line, strict=True))
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(len(points) / _MOST_POINTS)
    thinned = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        known = [v for _, v in part if v is not None]
        mean = sum(known) / len(known) if known else None
        thinned.append((part[len(part) // 2][0], mean))
    return thinned


def _table(
    x: Sequence[Any], values: Mapping[str, Sequence[float | None]]
) -> tuple[tuple[str, ...], ...]:
    """Return at most some 12 rows, first and last among them."""
    step = max(1, math.ceil(len(x) / 12))
    rows = sorted({*range(0, len(x), step), len(x) - 1} - {-1})
    return tuple(
        (
            str(x[row]) if not isinstance(x[row], float) else format_number(x[row]),
            *(
                "–" if line[row] is None else format_number(line[row] or 0.0)
                for line in values.values()
            ),
        )
        for row in rows
    )


def _range(values: Sequence[float], *, unit_interval: bool) -> tuple[float, float]:
    if unit_interval:
        return 0.0, 1.0
    low, high = min([0.0, *values]), max(values, default=1.0)
    if min(values, default=0.0) > 0.6 * high:  # far from 0: the changes matter
        low = min(values)
    if high <= low:
        high = low + 1
    step = ticks(low, high, 4)
    width = step[1] - step[0] if len(step) > 1 else high - low
    return math.floor(low / width) * width, math.ceil(high / width - 1e-9) * width


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Return round numbers between two values, about as many as wanted."""
    raw = (high - low) / wanted
    if not raw > 0 or not math.isfinite(raw):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    digits = 12 - math.floor(math.log10(step))
    return [round(n * step, digits) for n in range(first, last + 1)]


def boundaries(stages: Sequence[str], places: Sequence[float]) -> list[tuple[float, str]]:
    """Return where another stage begins, with its name; the first one has no line."""
    pairs = pairwise(zip(stages, places, strict=True))
    return [(place, stage) for (before, _), (stage, place) in pairs if before != stage]


def format_number(value: float) -> str:
    """Return three significant digits, without an exponent where that is short."""
    if value != value or value in (math.inf, -math.inf):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u202f")
    if 1e-4 <= abs(value) < 1e6:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{digits}f}"
    return f"{value:.2e}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) and math.isfinite(value) else None


def _tick(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="t">{html.escape(words)}</text>'

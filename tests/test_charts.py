"""Line charts as SVG: gaps, thinning, round ticks, and no word of a user in them."""

from __future__ import annotations

import re

import pytest
from tiny_runs import QUOTES, SCRIPT

from kswap.report.charts import boundaries, format_number, line_chart, ticks


def test_a_chart_breaks_its_line_where_a_value_is_missing():
    chart = line_chart("t", [1, 2, 3, 4, 5], {"a": [0.0, 1.0, None, float("nan"), 2.0]})
    assert chart.svg.count("<polyline") == 1
    assert chart.svg.count("<circle") == 1  # a lone point
    assert "nan" not in chart.svg
    assert chart.rows[2] == ("3", "–")
    assert chart.lines[0].last == "2"


def test_names_never_get_into_the_svg_and_titles_are_escaped():
    chart = line_chart(SCRIPT, ["<b>", "c"], {QUOTES: [1, 2]}, x_label="<i>", y_label='"')
    assert "<script>" not in chart.svg
    assert "<b>" not in chart.svg
    assert "onerror" not in chart.svg


def test_long_curves_are_thinned_and_keep_their_ends():
    chart = line_chart("t", list(range(10_000)), {"a": [float(k) for k in range(10_000)]})
    points = re.search(r'points="([^"]*)"', chart.svg)[1].split()
    assert 100 < len(points) <= 240
    assert chart.rows[0][0] == "0"
    assert chart.rows[-1][0] == "9999"
    assert len(chart.rows) < 16


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 100, [0, 25, 50, 75, 100]), (-1, 3, [-1, 0, 1, 2, 3])],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high, 4) == expected


@pytest.mark.parametrize("size", [7e-14, 1e-300, 3e12])
def test_very_small_and_large_values_are_drawn(size):
    assert len(set(ticks(0.0, size, 4))) > 2
    assert "nan" not in line_chart("t", [1, 2, 3], {"own": [0.0, size / 3, size]}).svg


@pytest.mark.parametrize("values", [[], [None], [0.0], [5.0, 5.0], [-3.0, -2.0], [1e-9, 1e12]])
def test_any_values_can_be_drawn(values):
    chart = line_chart("t", list(range(len(values))), {"a": values})
    assert not re.search(r"nan|inf", chart.svg)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12345, "12\u202f345"), (0.04213, "0.0421"), (3.14159, "3.14"), (1e-7, "1.00e-07"),
     (float("inf"), "inf"), (123.456, "123")],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert format_number(value) == text


def test_stages_are_marked_where_they_begin():
    assert boundaries(["a", "a", "b", "c"], [1, 2, 3, 4]) == [(3, "b"), (4, "c")]

"""RUN/report.html, figures/ and README.md, drawn from what a run left, without model or data.

The page is one file: style, charts and pictures are within it, and its content security policy
forbids scripts and anything from elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, UndefinedError
from markupsafe import Markup

from kswap.errors import UserError
from kswap.files import disk_errors, is_read_only, write_bytes
from kswap.manifest import check_files
from kswap.report.card import shown_base, write_card
from kswap.report.charts import format_number
from kswap.report.context import context_of
from kswap.report.figures import draw_figures
from kswap.report.reading import read_record
from kswap.run_folder import read_results

_NOT_AVAILABLE = "not available"


def draw_report(run_dir: str | Path) -> Path:
    """Draw report.html, figures/ and README.md of a finished run anew, from its numbers alone.

    Reads results.json, events.jsonl and arrays/; neither the model nor the data are needed, so that
    a copy of these three can be drawn anywhere.

    Returns:
        The path of report.html.

    Raises:
        UserError: not a finished run, or a file of it is damaged.
    """
    run_dir = Path(run_dir)
    results = read_results(run_dir)
    check_files(run_dir, "events.jsonl", "arrays", may_miss=True)
    with disk_errors(f"{run_dir}"):
        try:
            draw_figures(run_dir, results)
            write_card(run_dir, results)
            return write_report(run_dir, results)
        except OSError as error:
            if not is_read_only(error):
                raise
            raise UserError(
                f"{run_dir}: cannot be written to ({error.strerror}); copy the run to a folder of "
                "your own"
            ) from None
        except UserError:
            raise
        except (LookupError, TypeError, AttributeError, UndefinedError) as error:
            raise _unfit(run_dir, "lacks what a report shows", error) from error
        except (ValueError, ArithmeticError) as error:
            raise _unfit(run_dir, "holds what a report cannot show", error) from error


def _unfit(run_dir: Path, what: str, error: Exception) -> UserError:
    """Return that the numbers of a run, which were changed, do not make a report."""
    return UserError(
        f"{run_dir / 'results.json'}: {what} ({type(error).__name__}: {error}); run the same swap "
        "again, which writes it anew"
    )


def write_report(run_dir: Path, results: Mapping[str, Any]) -> Path:
    """Write report.html from `results` and what lies beside it."""
    path = run_dir / "report.html"
    write_bytes(path, render(run_dir, results).encode())
    return path


def render(run_dir: Path, results: Mapping[str, Any]) -> str:
    """Return the page."""
    record = read_record(run_dir, results)
    context = context_of(record, base_name=shown_base(results))
    template, style = _template()
    return template.render(**context, style=style)


@functools.cache
def _template() -> tuple[Template, Markup]:
    """Return the page's template and its style: compiled once, for all runs of a process."""
    environment = Environment(
        loader=PackageLoader("kswap.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "points": _points, "number": _number}
    environment.tests["spread"] = lambda cell: isinstance(cell, Mapping)
    source, _, _ = PackageLoader("kswap.report").get_source(environment, "report.css")
    return environment.get_template("report.html.j2"), Markup(source)


def _percent(share: float | None, digits: int = 1) -> str:
    return _NOT_AVAILABLE if share is None else f"{100 * share:.{digits}f}"


def _points(change: float) -> str:
    """Return a difference of percentages with its sign; a true minus, and no sign of zero."""
    text = f"{100 * abs(change):.1f}"
    return text if text == "0.0" else ("+" if change > 0 else "−") + text


def _number(cell: Any) -> str:
    """Return a cell of an audit's table that is no spread."""
    if cell is None:
        return _NOT_AVAILABLE
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return format_number(cell) if isinstance(cell, int | float) else str(cell)

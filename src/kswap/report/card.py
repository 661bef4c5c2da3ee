"""The model card (README.md of a run) in the Hub's format, from the numbers alone.

Metadata as https://huggingface.co/docs/hub/model-cards has it; scores as a model index, one data
set for each role.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kswap.errors import printable
from kswap.files import write_bytes
from kswap.report.table import markdown, percent, rows
from kswap.settings import ROLES, forgets

_LIMITS = """\
* **An unmerged adapter is reversible by design**: whoever has `adapter/` apart from the base can
  switch it off.
* **Whoever holds the public base model can undo a merged swap too**, by using the base.
* A score of 0 on the forgotten classes shows that the answer changed, not that the knowledge is
  gone; see the audit above.
* The forgotten classes keep their rows in the head, so that the scores above can be checked;
  `kswap export RUN --to DIR --drop-forgotten` removes them.
* Nothing here certifies forgetting."""

_PIPELINES = {
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
}
"""Task -> its name in transformers."""
_SCORES = {
    "top1": ("Top-1 accuracy", "accuracy"),
    "miou": ("Mean intersection over union of a role's classes", "mean_iou"),
    "map": ("COCO's mean average precision of a role's classes", "map"),
}
"""Score -> in words, and as the Hub names the metric."""
_MOST_CLASSES = 60
"""Rows of the table of classes; those that changed most."""


def write_card(run_dir: Path, results: Mapping[str, Any]) -> None:
    """Write README.md: metadata, then what was done, scores, audit and limits."""
    write_bytes(run_dir / "README.md", card(results).encode())


def shown_base(results: Mapping[str, Any]) -> str:
    """Return the name of the base model; of a local folder, its last part, of a run its own."""
    base = str((results.get("base") or {}).get("model") or "base model")
    path = Path(base)
    if not path.is_absolute():
        return printable(base)
    return printable(path.parent.name if path.name == "model" and path.parent.name else path.name)


def card(results: Mapping[str, Any]) -> str:
    """Return the text of the model card; names of classes are escaped."""
    classes = results["classes"]
    listed = {
        role: ", ".join(map(escape, members)) or "nothing" for role, members in classes.items()
    }
    trained_on = ", ".join(
        escape(f"{splits.get('train', 0)} {role}")
        for role, splits in results.get("images", {}).items()
    )
    version, order, preset, seed = (
        escape(str(results[key])) for key in ("kswap_version", "order", "preset", "seed")
    )
    stages = [[escape(cell) for cell in cells] for cells in rows(results)]
    pipeline = _PIPELINES[results["task"]]
    return f"""\
---
{yaml.safe_dump(_metadata(results), sort_keys=False, allow_unicode=True).strip()}
---

# {escape(shown_base(results))}, swapped

Made by [kswap](https://pypi.org/project/kswap) {version}: \
order {order}, preset
{preset}, seed {seed}, {results["seconds"]["total"]:.0f} s, \
training images: {trained_on}.

* **Learned:** {listed["learn"]}
* **{forgotten_heading(order)}:** {listed["forget"]}{_earlier(results)}
* **Retained:** {listed["retain"]}

`report.html` shows what happened class by class, with pictures.

## Scores

{_SCORES[results["score_name"]][0]} on the test split, in percent.

{markdown(stages)}{_weights(results)}

{_class_table(results)}

## Audit

{_audit(results.get("audit") or {})}

## Limits

{_LIMITS}

## Use

```python
from transformers import pipeline

answer = pipeline("{pipeline}", model="model")  # this folder's model/
```

`adapter/` holds the same swap as a PEFT adapter; its README.md says how to load it.
"""


def forgotten_heading(order: str) -> str:
    """Return what stands before the classes to forget."""
    return "Forgotten" if forgets(order) else f"To forget (no stage of order {order} did)"


def _earlier(results: Mapping[str, Any]) -> str:
    """Return which classes swaps before this one forgot; their rows are in the head as well."""
    names = (results.get("base") or {}).get("forgotten") or ()
    before = [escape(name) for name in names if name not in results["classes"]["forget"]]
    return f" (by earlier swaps: {', '.join(before)})" if before else ""


def escape(text: str) -> str:
    """Return `text` so that Markdown and HTML show it as it is, on one line."""
    text = html.escape(printable(text), quote=False)
    return re.sub(r"([\\\\`*_{}\[\]()#+!|~])", r"\\\1", text)


def _metadata(results: Mapping[str, Any]) -> dict[str, Any]:
    base = results.get("base") or {}
    model = base.get("model")
    licence = {key: base.get(key) for key in ("license", "license_name", "license_link")}
    on_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(model or "")) is not None
    return {
        "library_name": "transformers",
        "pipeline_tag": _PIPELINES[results["task"]],
        "tags": ["kswap", "knowledge-swapping", "machine-unlearning", "continual-learning"],
        **{key: said for key, said in licence.items() if said},
        **({"base_model": model} if on_hub else {}),
        "metrics": [_SCORES[results["score_name"]][1]],
        "model-index": [{"name": f"{shown_base(results)}, swapped", "results": _index(results)}],
    }


def _index(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the scores after the last stage, one entry for each role that has test images."""
    words, metric = _SCORES[results["score_name"]]
    scores = (results.get("saved") or results["stages"][-1])["scores"]
    return [
        {
            "task": {"type": _PIPELINES[results["task"]]},
            "dataset": {"name": f"classes to {role}", "type": f"kswap-{role}", "split": "test"},
            "metrics": [{"type": metric, "value": scores[role], "name": words, "verified": False}],
        }
        for role in ROLES
        if scores[role] is not None
    ]


def _weights(results: Mapping[str, Any]) -> str:
    """Return what was scored where the base was held in fewer bits than what is saved."""
    bits, saved = (results.get("base") or {}).get("weights", "fp32"), results.get("saved")
    if bits == "fp32" or not saved:
        return ""
    scores = ", ".join(f"{role} {percent(saved['scores'][role])}" for role in ROLES)
    return (
        f"\n\nThe stages were trained and scored on a base held in {bits}. What is saved here is "
        f"the adapter on the base in full precision, which scores: {scores}."
    )


def _class_table(results: Mapping[str, Any]) -> str:
    first, last = results["stages"][0]["per_class"], results["stages"][-1]["per_class"]
    found = [(name, role) for role, members in results["classes"].items() for name in members]
    shown = found
    if len(found) > _MOST_CLASSES:
        by_change = sorted(found, key=lambda f: -abs(last.get(f[0], 0.0) - first.get(f[0], 0.0)))
        kept = set(by_change[:_MOST_CLASSES])
        shown = [one for one in found if one in kept]
    table = [
        ("class", "role", "before", "after"),
        *(
            (escape(name), role, percent(first.get(name)), percent(last.get(name)))
            for name, role in shown
        ),
    ]
    left_out = len(found) - len(shown)
    more = f"\n\n{left_out} classes that changed less are in results.json." if left_out else ""
    return markdown(table) + more


def _audit(audit: Mapping[str, Any]) -> str:
    """Return the verdict and one row for each audit."""
    if not audit:
        return "Not audited yet: run `kswap audit RUN`."
    verdict, reference = audit["verdict"], audit["reference"]
    stopped = f" Stopped by {escape(verdict['stopped_by'])}." if verdict.get("stopped_by") else ""
    model = f", {escape(str(reference['model']))}" if reference.get("model") else ""
    valid = "" if reference["valid"] else " (not valid)"
    table = [
        ("audit", "question", "result"),
        *(
            (
                f"{escape(key)} {escape(one['title'])}",
                escape(one["question"]),
                escape(one["status"]),
            )
            for key, one in audit["audits"].items()
        ),
    ]
    warnings = "".join(f"\n* {escape(text)}" for text in audit.get("warnings", ()))
    level = f"**{escape(verdict['level'])}** (level {escape(audit['level'])})."
    return f"""\
{level}{stopped} {escape(verdict["reason"])}

Reference: {escape(reference["level"])}{model}{valid}. {escape(reference["note"])}

{markdown(table)}
{warnings}""".rstrip()

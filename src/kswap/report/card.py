"""The model card (README.md of a run), from the numbers alone."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kswap.files import write_bytes
from kswap.report.table import markdown, percent, rows

_LIMITS = """\
* A score of 0 on the forgotten classes shows that the answer changed, \
not that the knowledge is gone: no audit
  has been run on this model.
* Whoever holds the public base model, or the adapter apart from it, can undo the swap.
* The forgotten classes keep their rows in the head, so that the scores above can be checked;
  `kswap export RUN --to DIR --drop-forgotten` removes them."""

_PIPELINES = {
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
}
"""Task -> its name in transformers."""
_SCORES = {
    "top1": "Top-1 accuracy",
    "miou": "Mean intersection over union of a role's classes",
    "map": "COCO's mean average precision of a role's classes",
}


def write_card(run_dir: Path, results: Mapping[str, Any], *, base: str) -> None:
    """Write README.md in the Hub's format: metadata, then what was done, scores and limits."""
    write_bytes(run_dir / "README.md", card(results, base=base).encode())


def card(results: Mapping[str, Any], *, base: str) -> str:
    """Return the text of the model card; names of classes are escaped."""
    name = Path(base).name if Path(base).is_absolute() else base
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": _PIPELINES[results["task"]],
        "tags": ["kswap", "knowledge-swapping", "machine-unlearning", "continual-learning"],
        **({} if Path(base).is_absolute() else {"base_model": base}),
    }
    classes = results["classes"]
    images = results.get("images", {})
    per_class = [("class", "role", "before", "after")]
    first, last = results["stages"][0]["per_class"], results["stages"][-1]["per_class"]
    for role, members in classes.items():
        per_class += [
            (escape(c), role, percent(first.get(c)), percent(last.get(c))) for c in members
        ]
    trained_on = ", ".join(f"{splits.get('train', 0)} {role}" for role, splits in images.items())
    listed = {
        role: ", ".join(map(escape, members)) or "nothing" for role, members in classes.items()
    }
    return f"""\
---
{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip()}
---

# {escape(name)}, swapped

Made by [kswap](https://pypi.org/project/kswap) {results["kswap_version"]}: \
order {results["order"]}, preset
{results["preset"]}, seed {results["seed"]}, {results["seconds"]["total"]:.0f} s, \
training images: {trained_on}.

* **Learned:** {listed["learn"]}
* **Forgotten:** {listed["forget"]}
* **Retained:** {listed["retain"]}

## Scores

{_SCORES[results["score_name"]]} on the test split, in percent.

{markdown(rows(results))}

{markdown(per_class)}

## Audit

Not run.

## Limits

{_LIMITS}

## Use

```python
from transformers import pipeline

answer = pipeline("{_PIPELINES[results["task"]]}", model="model")  # this folder's model/
```

`adapter/` holds the same swap as a PEFT adapter; its README.md says how to load it.
"""


def escape(text: str) -> str:
    """Return `text` so that Markdown and HTML show it as it is, on one line."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\\\`*_{}\[\]()#+!|~])", r"\\\1", text)

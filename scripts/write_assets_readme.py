"""Writes src/kswap/demo/assets/README.md from the metrics.json of the demo's models.

Why: which command made which file, and what was measured, is read from what the run recorded, so
the page cannot differ from the weights. Run it after `make_demo_classification.py`:

    python scripts/write_assets_readme.py
"""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from cifar10 import CLASS_NAMES

ASSETS_DIR = Path(__file__).parent.parent / "src" / "kswap" / "demo" / "assets"
MODELS = ("base", "reference")

PAGE = """# Assets of the demo

Real pictures and pretrained models with which `kswap demo` runs where no hub can be reached. Origin
and licence of each: `NOTICE` in the root of the repository. This page is made by
`python scripts/write_assets_readme.py`.

## classification ({total} MB)

Made by one command, which fetches the data, trains both models, packs them and measures them as
unpacked:

```bash
python scripts/make_demo_classification.py
```

| file | MB | what |
|---|---|---|
| `train.parquet` | {train_mb} | CIFAR-10, 10 classes: the first 250 train images of each |
| `test.parquet` | {test_mb} | the first 100 test images of each class; none was trained on |
| `base/` | {base_mb} | the model that swaps; knows {base_names} |
| `reference/` | {reference_mb} | never saw {forget_names}; knows {reference_names} |

Parquet columns: `image` (struct of `bytes`, lossless WebP, and `path`, split and position in
CIFAR-10) and `label` (class name). A model folder holds `config.json`,
`preprocessor_config.json`, `metrics.json` and `weights-int8.safetensors`, which
`kswap.demo.packing` writes and reads. The train images of each model are the first ones of each
class, so those of `train.parquet` are among them.

The models were trained by

```bash
{commands}
```

### Measured

Top-1 in percent, one run each. Validation: the last 100 train images of each class. Test: the
images of `test.parquet`, 100 per class, before packing and as unpacked; with 700 of them one
standard error is about 1.3 points. The number of blocks and of train images was
set in view of these results, so they are no untouched estimate.

| model | blocks | train images | epochs | validation | test, float32 | test, as unpacked |
|---|---|---|---|---|---|---|
{results}

Test as unpacked, per class:

| model | {all_names} |
|---|{rule}
{per_class}
"""


def megabytes(path: Path) -> str:
    """Return the size of a file or of all files of a folder in MB."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return f"{sum(p.stat().st_size for p in files) / 1e6:.1f}"


def wrapped(command: str) -> str:
    """Break a command before each option, for reading."""
    lines: list[str] = []
    for word in shlex.split(command):
        if word.startswith("--") and len(lines[-1]) + len(word) > 60:
            lines[-1] += " \\"
            lines.append(f"  {word}")
        else:
            lines[-1:] = [f"{lines[-1]} {word}" if lines else word]
    return "\n".join(lines)


def result_row(name: str, metrics: dict[str, Any], num_blocks: int) -> str:
    """Return one line of the table of results."""
    tops = [metrics[key]["top1"] for key in ("validation", "test", "test_as_unpacked")]
    cells = [name, num_blocks, metrics["num_train_images"], len(metrics["history"])]
    return "| " + " | ".join(str(cell) for cell in [*cells, *tops]) + " |"


def class_row(name: str, metrics: dict[str, Any]) -> str:
    """Return one line of the table per class; a dash where the model does not know the class."""
    per_class = metrics["test_as_unpacked"]["per_class"]
    cells = [f"{per_class[n]:.0f}" if n in per_class else "-" for n in CLASS_NAMES]
    return f"| {name} | " + " | ".join(cells) + " |"


def page(assets_dir: Path) -> str:
    """Return the page for the models found in `assets_dir`."""
    folder = assets_dir / "classification"
    read = {n: [folder / n / f for f in ("metrics.json", "config.json")] for n in MODELS}
    loaded = {
        n: [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        for n, paths in read.items()
    }
    names = {n: list(metrics["test"]["per_class"]) for n, (metrics, _) in loaded.items()}
    return PAGE.format(
        total=megabytes(folder),
        train_mb=megabytes(folder / "train.parquet"),
        test_mb=megabytes(folder / "test.parquet"),
        base_mb=megabytes(folder / "base"),
        reference_mb=megabytes(folder / "reference"),
        base_names=", ".join(names["base"]),
        reference_names=", ".join(names["reference"]),
        forget_names=" and ".join(n for n in names["base"] if n not in names["reference"]),
        commands="\n".join(wrapped(metrics["command"]) for metrics, _ in loaded.values()),
        results="\n".join(
            result_row(n, metrics, config["num_hidden_layers"])
            for n, (metrics, config) in loaded.items()
        ),
        all_names=" | ".join(CLASS_NAMES),
        rule="---|" * len(CLASS_NAMES),
        per_class="\n".join(class_row(n, metrics) for n, (metrics, _) in loaded.items()),
    )


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets-dir", type=Path, default=ASSETS_DIR)
    assets_dir = parser.parse_args().assets_dir
    (assets_dir / "README.md").write_text(page(assets_dir), encoding="utf-8")


if __name__ == "__main__":
    main()

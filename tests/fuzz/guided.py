"""Coverage-guided fuzzing of what reads bytes, by atheris: mutations that reach new lines are kept.

    PYTHONPATH=tests python tests/fuzz/guided.py TARGET -runs=100000 -timeout=1 -rss_limit_mb=2048

Not part of the tests, which hypothesis does without instrumentation; `make fuzz-guided` installs
atheris, where PyPI has it for this Python, and runs every target. A target ends in data or in a
`UserError` of one line; all else, a second without an answer or too much memory is a failure, and
libFuzzer keeps the input.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kswap"]):
    from kswap.config import SwapConfig
    from kswap.data.coco import coco_table
    from kswap.data.images import read_image
    from kswap.data.scenes import make_legend
    from kswap.data.voc import voc_table
    from kswap.data.yolo import yolo_table
    from kswap.errors import UserError

# behind what is instrumented, as they import it too
from data.scenes import NAMES, write_images
from fuzz.test_readers import COCO, CONFIG, PICTURES, XML, read_all, yaml

FOLDER = Path(tempfile.mkdtemp(prefix="kswap-fuzz-"))


def _config(content: bytes) -> None:
    (FOLDER / "swap.yaml").write_bytes(content)
    SwapConfig.from_yaml(FOLDER / "swap.yaml")


def _coco(content: bytes) -> None:
    (FOLDER / "coco.json").write_bytes(content)
    read_all(coco_table(FOLDER / "coco.json", FOLDER / "images", "detection"))


def _voc(content: bytes) -> None:
    (FOLDER / "xml" / "000.xml").write_bytes(content)
    read_all(voc_table(FOLDER / "xml", FOLDER / "images"))


def _yolo(content: bytes) -> None:
    (FOLDER / "labels" / "001.txt").write_bytes(content)
    legend = make_legend(dict(enumerate(NAMES)), "names")
    read_all(yolo_table(FOLDER / "images", FOLDER / "labels", legend))


def _picture(content: bytes) -> None:
    read_image(content, name="picture")


TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "config": (_config, [yaml.safe_dump(CONFIG).encode()]),
    "coco": (_coco, [json.dumps(COCO).encode()]),
    "voc": (_voc, [XML]),
    "yolo": (_yolo, [b"0 0.5 0.5 0.2 0.3\n1 0.4 0.4 0.2 0.2\n"]),
    "picture": (_picture, PICTURES),
}
"""Name -> what reads bytes, and valid ones to begin with."""


def main() -> None:
    """Fuzz the target that the command line names."""
    read, seeds = TARGETS[sys.argv.pop(1)]
    write_images(FOLDER / "images", 3)
    for name in ("xml", "labels", "corpus"):
        (FOLDER / name).mkdir()
    for number, seed in enumerate(seeds):
        (FOLDER / "corpus" / str(number)).write_bytes(seed)

    def one(content: bytes) -> None:
        try:
            read(content)
        except UserError as error:
            if "\n" in str(error):
                raise AssertionError(f"not one line: {error!r}") from None

    atheris.Setup([*sys.argv, str(FOLDER / "corpus")], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

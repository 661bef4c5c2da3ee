"""What is handed out: the source archive has the package and its papers, and nothing by halves; the
reference has what is ours."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
BUILD = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
KEPT = {"LICENSE", "NOTICE", "README.md", "pyproject.toml", "src/kswap/py.typed"}


def test_the_source_archive_has_no_part_of_the_tests(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    for name in ("LICENSE", "MANIFEST.in", "NOTICE", "README.md", "pyproject.toml"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path)
    for name in ("src/kswap/__init__.py", "src/kswap/_version.py", "src/kswap/py.typed"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("tests/test_cli.py", "tests/conftest.py"):  # setuptools takes the first alone
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    subprocess.run([sys.executable, "-c", BUILD], cwd=tmp_path, check=True, capture_output=True)
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert names >= KEPT
    assert not [name for name in names if name.startswith("tests")]


def test_the_reference_has_no_member_that_pydantic_adds():
    page = (ROOT / "docs/reference.md").read_text()
    members = re.findall(r"^### SwapConfig\.(\w+)$", page, re.MULTILINE)
    assert "from_yaml" in members
    assert not [name for name in members if hasattr(BaseModel, name)]

"""Small on disk, large in memory: no more than 1 GB and 1 s of processor time for a file.

Each is read in a process of its own, whose memory is then known. Sizes are the largest that are
read, and beyond.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from kswap.data.images import _BOMB_PIXELS, MAX_PIXELS
from kswap.data.voc import voc_table
from kswap.errors import UserError

MEASURE = """
import json, sys, time
from kswap.data.images import read_image
from kswap.environment import peak_resident_bytes
from kswap.errors import UserError
begin = time.process_time()
try:
    said = list(read_image(sys.argv[1]).size)
except UserError as error:
    said = str(error)
seconds = time.process_time() - begin
print(json.dumps([seconds, peak_resident_bytes(), said]))
"""
LARGEST = int(_BOMB_PIXELS**0.5)
"""Side of the largest square that is read however small its file is."""


def flat(kind: str, mode: str, side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side, side)).save(buffer, kind)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that says it is so large, and has nothing of it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BOMBS = {
    "16 bits": (lambda: flat("PNG", "I;16", LARGEST), True),
    "indices": (lambda: flat("PNG", "P", LARGEST), True),
    "one bit": (lambda: flat("PNG", "1", LARGEST), True),
    "beyond, packed": (lambda: flat("PNG", "RGBA", LARGEST + 200), False),
    "beyond all": (lambda: flat("PNG", "1", int(MAX_PIXELS**0.5) + 1), False),
    "header alone": (lambda: png_header(5000, 5000), False),
    "a larger header": (lambda: png_header(2**31 - 1, 2**31 - 1), False),
}


@pytest.mark.parametrize("name", BOMBS)
def test_pictures(tmp_path, name):
    make, is_read = BOMBS[name]
    path = tmp_path / "picture"
    path.write_bytes(make())
    for _ in range(3):  # what else the machine does counts too, even in the processor's seconds
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
        )
        seconds, peak, said = json.loads(done.stdout)
        if seconds < 1:
            break
    assert isinstance(said, list) == is_read, said
    assert seconds < 1
    assert peak < 1e9


ENTITIES = "".join(
    f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' if n else '<!ENTITY a0 "lol">' for n in range(10)
)
DOCUMENTS = {
    "a billion laughs": f"<!DOCTYPE x [{ENTITIES}]><annotation><object>&a9;</object></annotation>",
    "one long entity often": f'<!DOCTYPE x [<!ENTITY a "{"x" * 50_000}">]><annotation>'
    + "&a;" * 50_000
    + "</annotation>",
    "a file": '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>',
    "an address": '<!DOCTYPE x SYSTEM "http://127.0.0.1:1/x.dtd"><annotation>&a;</annotation>',
    "a parameter": '<!DOCTYPE x [<!ENTITY % a SYSTEM "file:///etc/passwd"> %a;]><annotation/>',
    "deep": "<a>" * 100_000,
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_xml_expands_nothing(tmp_path, name):
    for folder in ("xml", "images"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "0.png")
    Path(tmp_path / "xml" / "0.xml").write_text(DOCUMENTS[name])
    with pytest.raises(UserError) as caught:
        voc_table(tmp_path / "xml", tmp_path / "images")
    assert "\n" not in str(caught.value)
    assert "root:" not in str(caught.value)

"""Where records of miniSEED 2 seem to begin in a few bytes, against the pattern of a header as the model."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from agent.sources.miniseed import headers

HEADER = rb"000001D STA  00HHZNN" + bytes([0x07, 0xEA, 0x00, 0x3C, 1, 2, 3, 0])
MODEL = re.compile(
    rb"(?s)[0-9 \0]{6}[DRQM][ \0].{12}(?:(?:\x07[\x6c-\xff]|\x08[\x00-\x34])[\x00\x01]."
    rb"|(?:[\x6c-\xff]\x07|[\x00-\x34]\x08).[\x00\x01])[\x00-\x17][\x00-\x3b][\x00-\x3c]"
)
PIECES = [HEADER, HEADER[:20], HEADER.replace(b"D ", b"Q\0"), b"D ", b"M\0", b"DD  ", b"000000", b" \0", b"\x01x"]


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=20)), max_size=30))
def test_headers_are_found_where_they_are(pieces: list[bytes]) -> None:
    """Protects samples behind a record that was cut off: no beginning is overlooked, and none is made up."""
    data = b"".join(pieces).replace(b"MS\x03", b"MS\x02")
    every = [at for at in range(len(data)) if MODEL.match(data, at)]
    assert headers(data) == every


def test_the_headers_of_the_test_are_some() -> None:
    """Protects the test above from finding nothing in everything."""
    assert headers(HEADER * 3) == [0, 28, 56]

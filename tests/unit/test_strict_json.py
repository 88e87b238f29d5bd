"""What lenient JSON readers let through is refused."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider import strict_json
from provider.strict_json import MalformedJSONError

LIMIT = 1 << 20


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a":1,"a":2}', "duplicate member"),
        (b'{"a":{"b":1,"b":1}}', "duplicate member"),
        (b"NaN", "NaN is not"),
        (b"[-Infinity]", "-Infinity is not"),
        (b"1e999", "too large"),
        (b"9" * 101, "more than 100 digits"),
        (b"1." + b"9" * 101, "more than 100 digits"),
        (b"{} {}", "Extra data"),
        (b"", "Expecting value"),
        (b"\xef\xbb\xbf{}", "Expecting value"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b'"\\ud800"', "surrogate"),
        (b"[" * 65 + b"]" * 65, "nested deeper"),
        (b"[" * 200_000, "nested deeper"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested deeper"),
    ],
)
def test_n16_a_trap_for_readers_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(MalformedJSONError, match=why):
        strict_json.loads(data, max_bytes=LIMIT)


def test_n16_more_bytes_than_allowed_are_not_parsed() -> None:
    with pytest.raises(MalformedJSONError, match="more than 4 bytes"):
        strict_json.loads(b"12345", max_bytes=4)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a":[1,2.5,null,true,"x"]}', {"a": [1, 2.5, None, True, "x"]}),
        (b'"\\u00e9\\ud83d\\ude00"', "é😀"),
        (b"[" * 64 + b"]" * 64, json.loads("[" * 64 + "]" * 64)),
        (b'["[[[[\\"{{{{"' + b',"[{"' * 100 + b"]", ['[[[["{{{{', *["[{"] * 100]),
        (b"[" + b"{}," * 100 + b"{}]", [{}] * 101),
    ],
)
def test_ordinary_values_are_read(data: bytes, value: object) -> None:
    assert strict_json.loads(data, max_bytes=LIMIT) == value


@given(st.binary(max_size=200))
def test_n70_any_bytes_give_a_value_or_our_error(data: bytes) -> None:
    with contextlib.suppress(MalformedJSONError):
        strict_json.loads(data, max_bytes=LIMIT)

"""What comes from an API server before it is taken: lines of a watch, and JSON that anybody may have a say in."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from provider.configuration import reflector
from provider.configuration.reflector import MAX_DEPTH, _AnswerError, _decode, _lines, _shallow


async def lines_of(*chunks: bytes) -> list[bytes]:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return [line async for line in _lines(stream(), 10.0)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"-"))), st.lists(st.integers(0, 500)))
async def test_lines_are_the_same_however_the_stream_is_cut(lines: list[bytes], places: list[int]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    assert await lines_of(*cut(data, places)) == [line for line in lines if line.strip()]


async def test_an_unfinished_line_is_none() -> None:
    """The connection was lost in the middle: half an event may look like a whole one of something else."""
    assert await lines_of(b'{"a": 1}\n{"type": "DELETED"') == [b'{"a": 1}']


async def test_a_line_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "MAX_ANSWER_BYTES", 1000)
    with pytest.raises(_AnswerError, match="more than 1000 bytes"):
        await lines_of(b"ok\n", *[b"x" * 100] * 20)


async def test_a_large_event_in_small_pieces_takes_time_in_proportion() -> None:
    """16 MiB in pieces of 1 KiB: with a copy of all that came before for each, this would take minutes."""
    piece = b"x" * 1024
    [line] = await lines_of(*[piece] * (16 * 1024), b"\n")
    assert len(line) == 16 * 1024 * 1024


def nested(depth: int, inner: str = "1") -> str:
    return "[" * depth + inner + "]" * depth


def test_what_lies_too_deep_is_cut_out_and_the_rest_is_read() -> None:
    """A reader would give up the whole list, and with it everybody's objects."""
    text = json.dumps({"items": [{"name": "good"}]})[:-2] + ', {"name": "deep", "spec": ' + nested(100_000) + "}]}"
    value = _decode(text.encode())
    assert value["items"][0] == {"name": "good"}
    assert value["items"][1]["name"] == "deep"
    innermost = value["items"][1]["spec"]
    while isinstance(innermost, list):
        [innermost] = innermost
    assert innermost == f"nested deeper than {MAX_DEPTH}"


def test_what_is_as_deep_as_may_be_is_left_alone() -> None:
    text = ('{"a": ' + nested(MAX_DEPTH - 1, '"[[[{{{\\"]]"') + ', "b": {}, "c": {}}').encode()
    assert _shallow(text) == text
    assert _decode(text)["c"] == {}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"1",
        b"{",
        b'{"a": }',
        b'{"a": "\xff"}',
        b"\xff\xfe{}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b"<html>404</html>",
        (nested(100_000)).encode(),
        (nested(100_000)[:-99_990]).encode(),
        b"]" * 200,
        b'{"a": "' + b"[" * 100,
    ],
    ids=range(14),
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(_AnswerError, match="no JSON object"):
        _decode(data)


@given(st.binary(max_size=300))
@example(b'"' * 100 + b"[" * 100)
@example(b"[" * 70 + b'"\\')
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(_AnswerError):
        assert isinstance(_decode(data), dict)


@pytest.mark.parametrize(
    "data", [b'"' + b'\\"' * 2_000_000, b'"\\' * 1_000_000, b'"' + b"\\" * 3_000_001], ids=range(3)
)
def test_a_text_without_an_end_takes_time_in_proportion(data: bytes) -> None:
    """4 MB: beginning anew at each quote would take hours."""
    assert len(_shallow(b"[" * 100 + data)) < len(data) + 200


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=9), JSON, max_size=5), st.booleans())
def test_what_is_not_too_deep_is_read_as_it_is(value: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps({"v": value, "many": [{}] * MAX_DEPTH}, ensure_ascii=ascii_only)
    assert _decode(text.encode("utf-8", "surrogatepass" if not ascii_only else "strict"))["v"] == value

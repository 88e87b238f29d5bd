"""What comes back from a service that gives credentials. The rest: integration/test_credential_exchange.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from provider.credentials.exchange import MAX_ANSWER_BYTES, Answer


def answer(body: bytes) -> Answer:
    return Answer(200, CIMultiDictProxy(CIMultiDict({"Set-Cookie": "secret-cookie"})), body)


def test_n11_an_answer_does_not_show_what_is_in_it() -> None:
    assert repr(answer(b"secret-body")) == "Answer(status=200)"


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"<html>", b'{"a": 1, "a": 2}', b'{"a":' * 100_000, b"\xff",
                                  b'{"a": "' + b"x" * MAX_ANSWER_BYTES + b'"}'])  # fmt: skip
def test_what_is_no_object_is_an_empty_one(body: bytes) -> None:
    assert answer(body).document() == {}


def test_an_object_is_itself() -> None:
    assert answer(b'{"a": [1]}').document() == {"a": [1]}


@given(st.binary(max_size=100))
def test_any_bytes_are_an_object(body: bytes) -> None:
    assert isinstance(answer(body).document(), dict)

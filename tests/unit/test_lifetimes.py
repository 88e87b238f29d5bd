"""How long a token lasts and how long a server wants to be left alone, read without a clock."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.lifetimes import (
    MAX_CLAIMS_BYTES,
    MAX_RETRY_AFTER,
    retry_after_seconds,
    seconds_until,
    token_lifetime_seconds,
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": " 0 "}, 0),
        ({"Retry-After": "999999999999999999999"}, MAX_RETRY_AFTER),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "٣"}, None),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:30 -0000", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT", "Date": "Wed, 21 Oct 2026 07:28:30 GMT"}, 0),
        ({"Retry-After": "Wed, 21 Oct 2126 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, MAX_RETRY_AFTER),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT"}, None),
    ],
)
def test_the_wait_that_is_asked_for_is_read_without_a_clock(fields: dict[str, str], expected: float | None) -> None:
    assert retry_after_seconds(fields) == expected


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_wait_is_within_bounds_or_none(wait: str, date: str) -> None:
    seconds = retry_after_seconds({"Retry-After": wait, "Date": date})
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


DATE = {"Date": "Wed, 21 Oct 2026 07:28:00 GMT"}
AT = 1792567680  # the same, as seconds since 1970


def jwt(claims: Any) -> str:
    """A token with these claims and no signature worth the name."""
    parts = [b'{"alg":"RS256"}', json.dumps(claims).encode(), b"signature"]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.mark.parametrize(
    ("claims", "fields", "expected"),
    [
        ({"exp": AT + 4500}, DATE, 4500),
        ({"exp": AT + 4500, "iat": AT - 500}, DATE, 4500),
        ({"exp": AT + 4500, "iat": AT - 500}, {}, 5000),
        ({"exp": AT + 4500, "nbf": AT}, {}, 4500),
        ({"exp": AT + 4500.5, "iat": AT}, {"Date": "yesterday"}, 4500.5),
        ({"exp": AT - 60}, DATE, -60),
        ({"exp": AT + 4500}, {}, None),
        ({"exp": str(AT + 4500)}, DATE, None),
        ({"exp": True}, DATE, None),
        ({"exp": -1}, DATE, None),
        ({"exp": 1e300}, DATE, None),
        ({}, DATE, None),
        ([AT], DATE, None),
        ("x" * MAX_CLAIMS_BYTES, DATE, None),
    ],
)
def test_a_token_lasts_from_the_servers_own_time_of_sending(
    claims: Any, fields: dict[str, str], expected: float | None
) -> None:
    """Whatever the clock here says."""
    assert token_lifetime_seconds(jwt(claims), fields) == expected


@pytest.mark.parametrize("token", ["", "opaque", "a.b", "a.b.c", "a.b.c.d", "..", "a.é.c", "a." + "e" * 10**6 + ".c"])
def test_what_is_no_json_web_token_says_nothing_of_its_end(token: str) -> None:
    assert token_lifetime_seconds(token, DATE) is None


@given(st.one_of(st.text(max_size=60), st.recursive(st.integers() | st.floats() | st.text(), st.lists).map(jwt)))
def test_any_token_gives_seconds_or_none(token: str) -> None:
    seconds = token_lifetime_seconds(token, DATE)
    assert seconds is None or isinstance(seconds, float)


@pytest.mark.parametrize(
    ("end", "fields", "sent", "expected"),
    [
        (AT + 60, DATE, None, 60),
        (AT - 60, DATE, None, -60),
        (AT + 60, DATE, AT - 1000, 60),
        (AT + 60, {}, AT, 60),
        (AT + 60, {}, None, None),
        ("soon", DATE, None, None),
        (True, DATE, None, None),
        (None, DATE, None, None),
        (float("nan"), DATE, None, None),
        (float("inf"), DATE, None, None),
    ],
)
def test_a_time_that_is_named_is_compared_with_the_servers_own(
    end: object, fields: dict[str, str], sent: object, expected: float | None
) -> None:
    assert seconds_until(end, fields, sent=sent) == expected

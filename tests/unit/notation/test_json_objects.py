"""JSON objects of signatures leave nothing to choose."""

from __future__ import annotations

import pytest

from provider.notation.json_objects import MAX_BYTES, MAX_VALUES, check_names, read_object
from provider.strict_json import MalformedJSONError


def test_an_object_is_read() -> None:
    assert read_object(b'{"a":{"B":[1]},"x":null}', known=("a", "b")) == {"a": {"B": [1]}, "x": None}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[]", "not an object"),
        (b'{"a":1,"a":1}', "duplicate"),
        (b'{"A":1}', "differs from a in case alone"),
        (b'{"a":1,"A":1}', "differs from a in case alone"),
        ('{"\u212a":1}'.encode(), "differs from k in case alone"),  # KELVIN SIGN, which Go folds too
        (b'{"a":[' + b"0," * MAX_VALUES + b"0]}", f"more than {MAX_VALUES} values"),
        (b'{"a":[' + b"{}," * (MAX_VALUES // 2) + b"0]}", f"more than {MAX_VALUES} values"),
        (b'{"a":"' + b"x" * MAX_BYTES + b'"}', f"more than {MAX_BYTES} bytes"),
    ],
)
def test_n16_what_two_readers_could_read_differently_or_not_at_all_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(MalformedJSONError, match=why):
        read_object(data, known=("a", "k"))


def test_a_known_name_as_it_is_and_unknown_names_in_any_case_pass() -> None:
    check_names({"a": 1, "Other": 1, "other": 2}, known=("a",))

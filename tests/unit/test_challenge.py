"""WWW-Authenticate fields, as RFC 9110 has them and as registries write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.challenge import MAX_CHALLENGES, MAX_FIELD_LENGTH, Challenge, parse_challenges

REALM = "https://auth.example.test/token?a=b"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            [f'Bearer realm="{REALM}",service="reg",scope="repository:a/b:pull,push"'],
            [("bearer", {"realm": REALM, "service": "reg", "scope": "repository:a/b:pull,push"})],
        ),
        (["Basic"], [("basic", {})]),
        (['Basic realm="x", Bearer realm="y"'], [("basic", {"realm": "x"}), ("bearer", {"realm": "y"})]),
        (['Basic realm="x"', 'Bearer realm="y"'], [("basic", {"realm": "x"}), ("bearer", {"realm": "y"})]),
        ([f"BEARER Realm={REALM},SERVICE=reg"], [("bearer", {"realm": REALM, "service": "reg"})]),
        (['Bearer realm = "x" ,\tservice\t=y'], [("bearer", {"realm": "x", "service": "y"})]),
        ([', , Bearer realm="x",, error="invalid_token" ,'], [("bearer", {"realm": "x", "error": "invalid_token"})]),
        (['Negotiate YII==, Basic realm="x"'], [("negotiate", {}), ("basic", {"realm": "x"})]),
        (["Negotiate, Basic realm=x"], [("negotiate", {}), ("basic", {"realm": "x"})]),
        ([r'Basic realm="a \"quoted\" \\ one, and a comma"'], [("basic", {"realm": r'a "quoted" \ one, and a comma'})]),
        (['Bearer realm=""'], [("bearer", {"realm": ""})]),
        # outside the grammar: the line says nothing, and spoils no other
        (['Bearer realm="unterminated'], []),
        (['Bearer realm="x" service="y"'], []),
        (['Bearer realm="x",realm="y"'], []),
        (["Bearer a b c"], []),
        (['"Bearer"'], []),
        ([""], []),
        (['Bearer realm="unterminated', "Basic realm=x"], [("basic", {"realm": "x"})]),
        (["Basic realm=" + "x" * MAX_FIELD_LENGTH], []),
        (["Bearer " + ",".join(f"p{number}=x" for number in range(33))], []),
    ],
)
def test_challenges_are_read(lines: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    assert parse_challenges(lines) == tuple(Challenge(scheme, parameters) for scheme, parameters in expected)


def test_there_are_never_more_challenges_than_anyone_means() -> None:
    assert len(parse_challenges(["A, " * 1000] * 1000)) == MAX_CHALLENGES


@given(st.lists(st.text(max_size=200), max_size=3))
def test_any_text_is_borne(lines: list[str]) -> None:
    for challenge in parse_challenges(lines):
        assert challenge.scheme == challenge.scheme.lower()


@given(st.text(alphabet='Bearer ,="\\realm\t', max_size=200))
def test_any_text_near_the_grammar_is_borne(line: str) -> None:
    parse_challenges([line])


@pytest.mark.parametrize("unit", ['a="\\\\', "a=b,", "a ", "a,", " =", ',"', "a =", "\\", '"', ", ,", "a=b c=d "])
def test_n23_no_field_takes_more_than_linear_work(unit: str) -> None:
    """Bounded by the suite's time limit: a regular expression that backtracks would need hours on these."""
    parse_challenges(["Bearer " + unit * (MAX_FIELD_LENGTH // len(unit) - 8)])

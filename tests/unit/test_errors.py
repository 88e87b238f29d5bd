"""Errors say what happened and what to do, and no foreign text breaks out of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs.generate import errors_page
from provider.errors import (
    CODES,
    MAX_FOREIGN_TEXT,
    ConfigurationError,
    CountersignError,
    Fault,
    InvalidKey,
    Kind,
    Refused,
    Undecided,
    UsageError,
    printable,
)

CLASSES: dict[Kind, type[CountersignError]] = {
    Kind.REFUSED: Refused,
    Kind.INVALID_KEY: InvalidKey,
    Kind.UNDECIDED: Undecided,
    Kind.CONFIGURATION: ConfigurationError,
    Kind.USAGE: UsageError,
}


@pytest.mark.parametrize("code", CODES)
def test_every_code_can_be_raised_says_what_to_do_and_is_documented(code: str) -> None:
    error = CLASSES[CODES[code].kind](code, "something happened")
    assert str(error) == f"{code}: something happened"
    assert error.remediation.endswith(".")
    assert f"`{code}`" in errors_page()


def test_a_code_cannot_be_raised_on_another_branch_of_the_tree() -> None:
    with pytest.raises(ValueError, match="UNSIGNED is of kind refused"):
        Undecided("UNSIGNED", "no signature")


def test_expected_and_found_are_shown_beside_the_reason() -> None:
    error = Refused(
        "DIGEST_MISMATCH", "other content", expected="sha256:a", found="sha256:b", remediation="Push again."
    )
    assert error.detail == "other content (expected sha256:a, found sha256:b)"
    assert error.remediation == "Push again."
    assert Refused("DIGEST_MISMATCH", "other content", found="x").detail == "other content (found x)"


def test_the_cause_of_waiting_carries_its_time() -> None:
    assert Undecided("REGISTRY_THROTTLED", "slow down", retry_after=3.5).retry_after == 3.5


def test_a_configuration_error_lists_every_fault() -> None:
    faults = [
        Fault("a.yaml#1", "Store/oras", "spec.parameters.useHttp", "must be true or false"),
        Fault("b.yaml", "", "", "empty"),
    ]
    error = ConfigurationError("CONFIG_INVALID", "2 faults", faults=faults)
    assert [str(fault) for fault in error.faults] == [
        "a.yaml#1 Store/oras spec.parameters.useHttp: must be true or false",
        "b.yaml: empty",
    ]


@given(st.text())
def test_foreign_text_cannot_forge_log_lines_or_flood_an_answer(text: str) -> None:
    shown = Refused("UNSIGNED", text, found=text).detail
    assert shown.isprintable()
    assert len(shown) <= 2 * MAX_FOREIGN_TEXT + len(" (found )")
    assert printable("a\nb\x1b[31m\u202e") == "a\ufffdb\ufffd[31m\ufffd"

"""How a wrong section is told."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field

from provider.configuration.sections import (
    Flaw,
    Listed,
    Section,
    Surroundings,
    describe,
    inspect,
    join,
    quote,
    step,
    suggest,
)


class Inner(Section):
    deep_key: int = 0


class Outer(Section):
    several: Listed[Inner] = ()
    maybe: Inner | None = None
    by_name: dict[str, Inner] = Field(default_factory=dict)
    number: int = 0


def flaws_of(value: Any) -> list[Flaw]:
    section, flaws = inspect(Outer, value, Surroundings())
    assert section is None
    return flaws


def test_a_misspelled_key_is_told_with_the_one_that_was_meant() -> None:
    """At any depth: in a list, in something optional."""
    assert flaws_of({"several": [{}, {"deepkey": 1}], "maybe": {"depKey": 1}, "xyz": 1}) == [
        Flaw("several[1].deepkey", "is not a known key; did you mean deepKey?"),
        Flaw("maybe.depKey", "is not a known key; did you mean deepKey?"),
        Flaw("xyz", "is not a known key; known: byName, maybe, number, several"),
    ]


def test_keys_are_spelled_as_in_manifests_only() -> None:
    assert flaws_of({"by_name": {}}) == [Flaw("by_name", "is not a known key; did you mean byName?")]


def test_a_key_with_dots_is_quoted_in_a_path() -> None:
    assert flaws_of({"byName": {"a.b/c": {"deepKey": "5"}}}) == [
        Flaw('byName["a.b/c"].deepKey', "must be a whole number, found the text '5'")
    ]


def test_a_key_that_is_no_text_is_told() -> None:
    """YAML readers other than ours make numbers of keys."""
    assert flaws_of({5: 1}) == [Flaw("[5]", "Keys should be strings")]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "nothing (null)"),
        (True, "true"),
        (1.5, "the number 1.5"),
        (10**30, "a very large number"),
        ("a", "the text 'a'"),
        ("a\nb", "a text of 3 characters"),
        ("x" * 65, "a text of 65 characters"),
        ([1], "a list"),
        ((1,), "a list"),
        ({}, "a mapping"),
    ],
)
def test_what_was_found_is_told_in_a_few_words(value: object, words: str) -> None:
    assert describe(value) == words


def test_foreign_text_cannot_forge_lines() -> None:
    assert "\n" not in quote("a\n2026-01-01 INFO all is well") + step("a\nb") + describe("a\rb")


def test_key_paths_are_joined_as_people_read_them() -> None:
    assert join("spec", "", "parameters", "[0]", "name") == "spec.parameters[0].name"
    assert join("", "spec") == "spec"
    assert join() == ""


def test_a_word_of_absurd_length_is_compared_with_nothing() -> None:
    """Comparing costs time that grows with the length."""
    assert suggest("a" * 10_000, ["a"]) == ""
    assert suggest("Ca", ["ca", "tsa"]) == "; did you mean ca?"
    assert suggest("x", []) == ""

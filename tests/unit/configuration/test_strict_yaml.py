"""YAML that operators write, and YAML that somebody writes to have it read as something else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provider.configuration import strict_yaml
from provider.configuration.strict_yaml import load_documents


def value_of(text: str) -> Any:
    """The value of a text of one document without problems."""
    [document], problems = load_documents(text.encode())
    assert not problems
    return document.value


def problems_of(text: str | bytes) -> list[tuple[int, int, str, str]]:
    """The problems of a text: document, line, path, message."""
    _, problems = load_documents(text if isinstance(text, bytes) else text.encode())
    return [(one.document, one.line, one.path, one.message) for one in problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("NO", "NO"),
        ("yes", "yes"),
        ("On", "On"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("'true'", "true"),
        ("12:30", "12:30"),
        ("2026-01-02", "2026-01-02"),
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
        ("1.0", 1.0),
        ('"1.0"', "1.0"),
        ("1.0.0", "1.0.0"),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("-7", -7),
        ("1e3", 1000.0),
        ("1e400", "1e400"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("~", None),
        ("null", None),
        ("", None),
        ("=", "="),
        ("!!str 5", "5"),
        ("! 5", "5"),
        ("*".join(["'", "'"]), "*"),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    """What YAML 1.1 turns into booleans, sexagesimal numbers and dates stays text."""
    found = value_of(f"key: {text}\n")["key"]
    assert found == value
    assert type(found) is type(value)


def test_a_key_is_text_whatever_it_looks_like() -> None:
    assert value_of("1: a\ntrue: b\nNO: c\n~: d\n") == {"1": "a", "true": "b", "NO": "c", "~": "d"}


def test_mappings_lists_and_block_texts_are_read() -> None:
    text = "a:\n  - b\n  - - c\n    - {d: e, f: [g, {h: i}]}\n  - |\n    x\n    y\nj: >-\n  k\n  l\n"
    assert value_of(text) == {"a": ["b", ["c", {"d": "e", "f": ["g", {"h": "i"}]}], "x\ny\n"], "j": "k l"}


def test_documents_are_numbered_and_empty_ones_count() -> None:
    """A fault names the document by its place in the file, as a person counts separators."""
    documents, problems = load_documents(b"---\n---\na: 1\n---\n# nothing\n---\nb: 2\n")
    assert [(one.number, one.line, one.value) for one in documents] == [(2, 2, {"a": 1}), (4, 6, {"b": 2})]
    assert not problems


def test_a_byte_order_mark_and_windows_line_ends_are_no_problem() -> None:
    documents, problems = load_documents(b"\xef\xbb\xbfa: b\r\nc: d\r\n")
    assert documents[0].value == {"a": "b", "c": "d"}
    assert not problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2\n", (1, 2, "", "the key a stands here a second time, first on line 1")),
        (
            "x:\n- {b: 1}\n- {c: {d: 1, d: 2}}\n",
            (1, 3, "x[1].c", "the key d stands here a second time, first on line 3"),
        ),
        ("a: &x 1\nb: *x\n", (1, 2, "b", "an alias (*x) is not read: write the value out")),
        ("a: [1, &x 2, *x]\n", (1, 1, "a[2]", "an alias (*x) is not read: write the value out")),
        ("a: {<<: {b: 1}}\n", (1, 1, "a", "a merge key (<<) is not read: write the keys out")),
        ("? [a]\n: b\n", (1, 1, "", "a key is a mapping or a list, expected text")),
        ("a: !!binary aGk=\n", (1, 1, "a", "a tag (tag:yaml.org,2002:binary) is not read")),
        (
            "a: !!python/object:os.system {}\n",
            (1, 1, "a", "a tag (tag:yaml.org,2002:python/object:os.system) is not read"),
        ),
        ("a:\n\tb: 1\n", (1, 2, "", "the line is indented with a tab: YAML wants spaces")),
        ("a: b\n c: d\n", (1, 2, "", "mapping values are not allowed in this context")),
        ("a: 'b\n", (1, 2, "", "found unexpected end of stream (while scanning a quoted scalar)")),
        ("a: \x01\n", (1, 1, "", "a control character in the text")),
        ("a: 1" + "0" * 100 + "\n", (1, 1, "a", "a number of more than 100 digits")),
        (b"a: b\nc: \xff\n", (1, 2, "", "the file is not UTF-8 text")),
        (b"\xff\xfea\0", (1, 1, "", "the file is not UTF-8 text")),
    ],
)
def test_what_is_not_read_is_told_with_its_line_and_path(text: str, problem: tuple[int, int, str, str]) -> None:
    documents, _ = load_documents(text if isinstance(text, bytes) else text.encode())
    assert problems_of(text) == [problem]
    assert not documents


def test_a_problem_of_one_document_leaves_the_others() -> None:
    """Duplicate keys here, an alias there: all is told at once, and what is sound is read."""
    documents, problems = load_documents(b"a: 1\na: 2\n---\nb: *x\n---\nc: 3\n")
    assert [(one.number, one.value) for one in documents] == [(3, {"c": 3})]
    assert [one.document for one in problems] == [1, 2]


def test_after_a_problem_of_syntax_the_documents_before_it_stay() -> None:
    documents, problems = load_documents(b"a: 1\n---\nb: [\n---\nc: 3\n")
    assert [one.value for one in documents] == [{"a": 1}]
    assert [one.document for one in problems] == [2]


def test_aliases_cannot_make_a_small_file_grow() -> None:
    """The billion laughs: each alias is a problem, none is followed."""
    lines = ["a0: &a0 [lol]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    documents, problems = load_documents("\n".join(lines).encode())
    assert not documents
    assert len(problems) == 72


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 50_000, "nested deeper than 32"),
        ("- " * 50_000, "nested deeper than 32"),
        ("{a: " * 50_000, "nested deeper than 32"),
        ("[" + "x," * 100_001 + "]", "the file has more than 100000 values"),
        ("--- a\n" * 1001, "the file has more than 1000 documents"),
        (" " * (strict_yaml.MAX_BYTES + 1), f"the file has more than {strict_yaml.MAX_BYTES} bytes"),
    ],
    ids=["lists", "blocks", "mappings", "values", "documents", "bytes"],
)
def test_a_file_beyond_the_limits_is_not_read(text: str, message: str) -> None:
    assert problems_of(text)[-1][3] == message


def test_what_is_within_the_limits_is_read() -> None:
    depth = strict_yaml.MAX_DEPTH
    assert value_of("[" * depth + "]" * depth) == json.loads("[" * depth + "]" * depth)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_n70_any_bytes_give_values_or_problems(data: bytes) -> None:
    """No bytes raise, and none are read in part without a word."""
    documents, problems = load_documents(data)
    for document in documents:
        json.dumps(document.value)
    for problem in problems:
        assert problem.message.isprintable()
        assert problem.line >= 1


@settings(deadline=None)
@given(st.text(alphabet="ab:-[]{},&*!?|>'\"#%@` \t\n~01<.", max_size=80))
def test_n70_any_arrangement_of_indicators_gives_values_or_problems(text: str) -> None:
    load_documents(text.encode())


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.text(alphabet=st.characters(codec="ascii", categories=["L", "N", "P", "Z"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet="abcXYZ_", min_size=1), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(JSON_VALUES)
def test_json_is_yaml_and_means_the_same(value: object) -> None:
    """Manifests made by programs are JSON."""
    documents, problems = load_documents(json.dumps(value).encode())
    assert not problems
    assert [one.value for one in documents] == ([] if value is None else [value])

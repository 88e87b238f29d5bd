"""YAML as operators write it: one reader that refuses what lenient readers silently turn into something else.

Rules:
- Values are those of the YAML 1.2 core schema: `NO`, `yes`, `12:30` and dates are text; only true and false are
  booleans.
- A key is text, whatever it looks like, and stands once in its mapping.
- No aliases, no merge keys, no tags: what is written is what is read, and nothing grows on reading.
- Bytes, documents, depth and nodes are bounded.
- Reading goes on after a problem where it can, so that every problem is told at once, each with its line.

What does not belong here: any schema. Source: YAML 1.2.2 section 10.3 (core schema). PyYAML's parser (libyaml where it
is built in) splits the text into events; its resolver and constructors, which follow YAML 1.1, are not used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from provider.errors import printable

MAX_BYTES: Final = 4 * 1024 * 1024  # of one file; a Kubernetes object has at most 1.5 MiB, a ConfigMap 1 MiB
MAX_DOCUMENTS: Final = 1000  # of one file
MAX_DEPTH: Final = 32  # nested mappings and lists; a trust policy inside a List of Verifiers has 9
MAX_NODES: Final = 100_000  # of one file
MAX_DIGITS: Final = 100  # of one number; keeps int() linear

_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Section 10.3.2. Infinity, not-a-number and what a double cannot hold stay text: no setting means them.
_NULL: Final = re.compile(r"~|null|Null|NULL|")
_BOOLEANS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER: Final = re.compile(r"[-+]?[0-9]+")
_OCTAL: Final = re.compile(r"0o[0-7]+")
_HEXADECIMAL: Final = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,2})?")

_TEXT_TAGS: Final = frozenset({None, "!", "tag:yaml.org,2002:str"})
_MERGE_KEY: Final = "<<"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the text.

    Attributes:
        document: number of the document in the file, from 1.
        line: line of the file, from 1; 0 when it is not known.
        path: key path inside the document as far as it is known.
        message: what is wrong; quotes keys, never values.
    """

    document: int
    line: int
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file.

    Attributes:
        number: its place in the file, from 1; empty documents count and are left out.
        line: line of the file on which it begins, from 1.
        value: mappings as dict, lists as list, scalars as str, bool, int, float or None.
    """

    number: int
    line: int
    value: Any


def load_documents(data: bytes) -> tuple[tuple[Document, ...], tuple[Problem, ...]]:
    """Read every document of a YAML file.

    Args:
        data: the file's bytes; UTF-8, with or without a byte order mark.

    Returns:
        The documents that have no problem, and the problems of the others. After a problem of syntax nothing further
        can be read. Nothing is raised, whatever the bytes are.
    """
    if len(data) > MAX_BYTES:
        return (), (Problem(1, 1, "", f"the file has more than {MAX_BYTES} bytes"),)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return (), (Problem(1, line, "", "the file is not UTF-8 text"),)
    reader = _Reader()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            reader.feed(event)
    except yaml.YAMLError as error:
        reader.problems.append(_syntax_problem(error, text, max(reader.number, 1)))
    except _Stop:
        pass
    return tuple(reader.documents), tuple(reader.problems)


class _Stop(Exception):
    """Nothing further can or may be read."""


@dataclass(slots=True)
class _Frame:
    """A mapping or list that is being read, with the lines of a mapping's keys and the key that waits for its value."""

    value: dict[str, Any] | list[Any]
    key: str | None = None
    lines: dict[str, int] = field(default_factory=dict)

    @property
    def wants_key(self) -> bool:
        return isinstance(self.value, dict) and self.key is None


class _Reader:
    """Builds values from parser events with a stack of its own: depth costs no recursion."""

    def __init__(self) -> None:
        self.documents: list[Document] = []
        self.problems: list[Problem] = []
        self.number = 0
        self._line = 1
        self._nodes = 0
        self._stack: list[_Frame] = []
        self._problems_before = 0

    def feed(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else self._line
        match event:
            case yaml.DocumentStartEvent():
                self._begin_document(line)
            case yaml.AliasEvent():
                self._problem(line, f"an alias (*{event.anchor}) is not read: write the value out")
                self._scalar("", None, line)
            case yaml.ScalarEvent():
                if event.tag not in _TEXT_TAGS:
                    self._problem(line, f"a tag ({event.tag}) is not read")
                plain = event.implicit[0] and event.tag is None
                self._scalar(event.value, self._resolve(event.value, line) if plain else event.value, line)
            case yaml.MappingStartEvent():
                self._open({}, event.tag, line)
            case yaml.SequenceStartEvent():
                self._open([], event.tag, line)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._close()
            case _:  # begin and end of the stream, end of a document: nothing to build
                pass

    def _begin_document(self, line: int) -> None:
        self.number += 1
        self._line = line
        self._problems_before = len(self.problems)
        if self.number > MAX_DOCUMENTS:
            self._problem(line, f"the file has more than {MAX_DOCUMENTS} documents")
            raise _Stop

    def _end_document(self, value: Any) -> None:
        if value is not None and len(self.problems) == self._problems_before:
            self.documents.append(Document(self.number, self._line, value))

    def _open(self, value: dict[str, Any] | list[Any], tag: str | None, line: int) -> None:
        if len(self._stack) >= MAX_DEPTH:
            self._problem(line, f"nested deeper than {MAX_DEPTH}")
            raise _Stop
        if self._stack and self._stack[-1].wants_key:
            self._problem(line, "a key is a mapping or a list, expected text")
            raise _Stop
        if tag is not None:
            self._problem(line, f"a tag ({tag}) is not read")
        if self._stack:
            self._place(value, line)
        self._stack.append(_Frame(value))

    def _close(self) -> None:
        value = self._stack.pop().value
        if self._stack:
            self._stack[-1].key = None
        else:
            self._end_document(value)

    def _scalar(self, text: str, value: Any, line: int) -> None:
        if not self._stack:
            self._end_document(value)
        elif self._stack[-1].wants_key:
            self._key(self._stack[-1], text, line)
        else:
            self._place(value, line)

    def _key(self, frame: _Frame, text: str, line: int) -> None:
        if text == _MERGE_KEY:
            self._problem(line, "a merge key (<<) is not read: write the keys out")
        elif text in frame.lines:
            self._problem(line, f"the key {text} stands here a second time, first on line {frame.lines[text]}")
        frame.lines.setdefault(text, line)
        frame.key = text

    def _place(self, value: Any, line: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._problem(line, f"the file has more than {MAX_NODES} values")
            raise _Stop
        frame = self._stack[-1]
        if isinstance(frame.value, list):
            frame.value.append(value)
        else:
            frame.value[frame.key or ""] = value  # it is never None here: the parser alternates keys and values
            if not isinstance(value, (dict, list)):
                frame.key = None

    def _problem(self, line: int, message: str) -> None:
        self.problems.append(Problem(self.number, line, self._path(), printable(message)))

    def _path(self) -> str:
        steps: list[str] = []
        for depth, frame in enumerate(self._stack, start=1):
            if isinstance(frame.value, list):
                # A container is in its list from its beginning on, a scalar only after it was read.
                steps.append(f"[{len(frame.value) - (depth < len(self._stack))}]")
            elif frame.key is not None:
                steps.append(f".{frame.key}")
        return "".join(steps).removeprefix(".")

    def _resolve(self, text: str, line: int) -> Any:
        """The value of a plain scalar by the core schema."""
        if _NULL.fullmatch(text):
            return None
        if text in _BOOLEANS:
            return _BOOLEANS[text]
        for pattern, base in ((_INTEGER, 10), (_OCTAL, 8), (_HEXADECIMAL, 16)):
            if pattern.fullmatch(text):
                return int(self._digits(text, line), base)
        return float(self._digits(text, line)) if _FLOAT.fullmatch(text) else text

    def _digits(self, text: str, line: int) -> str:
        if len(text) <= MAX_DIGITS:
            return text
        self._problem(line, f"a number of more than {MAX_DIGITS} digits")
        return "0"


def _syntax_problem(error: yaml.YAMLError, text: str, document: int) -> Problem:
    """What the parser stumbled over, in words that tell what to change."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:  # an unprintable character: the reader knows its position only
        position = getattr(error, "position", 0)
        return Problem(document, text.count("\n", 0, position) + 1, "", "a control character in the text")
    lines = text.split("\n")
    content = lines[mark.line] if mark.line < len(lines) else ""
    indentation = content[: len(content) - len(content.lstrip())]
    if "\t" in indentation:
        return Problem(document, mark.line + 1, "", "the line is indented with a tab: YAML wants spaces")
    what = getattr(error, "problem", None) or "the text is not YAML"
    context = getattr(error, "context", None)
    return Problem(document, mark.line + 1, "", printable(f"{what} ({context})" if context else what))

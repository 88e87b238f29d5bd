"""Reads a Dockerfile, and says which of our rules it breaks.

Rules of the reader: line continuations, comments and exec form as Docker reads them; what it does not know
(here-documents, parser directives, ONBUILD) is an error, because a step that is read wrongly is checked wrongly.

What does not belong here: running the steps (test_image.py does), and style (hadolint's business).
Source: the Dockerfile reference of Docker.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

KEYWORDS: Final = frozenset(
    {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "LABEL", "RUN", "USER", "WORKDIR"}
)
PINNED: Final = re.compile(r"[a-z0-9.-]+(/[a-z0-9._-]+)+:[A-Za-z0-9._-]+@sha256:[0-9a-f]{64}")
INSTALL: Final = re.compile(r"\bpip\b.*\b(install|wheel|download)\b")
FETCHES: Final = re.compile(r"\b(curl|wget|apt-get|apk|git|npm)\b")


class NotUnderstood(Exception):
    """The Dockerfile has something that the reader does not know."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its keyword in capitals, and the rest with continuations joined."""

    keyword: str
    rest: str

    @property
    def words(self) -> list[str]:
        """The exec form's list, or what a shell would split the rest into."""
        return self.exec_form or shlex.split(self.rest)

    @property
    def exec_form(self) -> list[str] | None:
        """The list of an exec form; None in shell form."""
        try:
            value = json.loads(self.rest)
        except ValueError:
            return None
        return [str(word) for word in value] if isinstance(value, list) else None

    @property
    def pairs(self) -> dict[str, str]:
        """The `name=value` pairs of ENV, LABEL and ARG."""
        return dict(word.partition("=")[::2] for word in shlex.split(self.rest))


@dataclass(slots=True)
class Stage:
    """One stage: its base (an image, with arguments put in, or another stage), its name, its instructions."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def having(self, keyword: str) -> list[Instruction]:
        """The instructions with a keyword, in order."""
        return [instruction for instruction in self.instructions if instruction.keyword == keyword]

    def pairs(self, keyword: str) -> dict[str, str]:
        """The pairs of all ENV or LABEL instructions, later ones over earlier ones."""
        return {name: value for one in self.having(keyword) for name, value in one.pairs.items()}


def parse(text: str) -> list[Stage]:
    """The stages of a Dockerfile.

    Raises:
        NotUnderstood: it has something that this reader does not know.
    """
    stages: list[Stage] = []
    arguments: dict[str, str] = {}
    for one in _instructions(text):
        if one.keyword == "FROM":
            words = one.words
            if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
                raise NotUnderstood(f"FROM {one.rest}")
            stages.append(Stage(_filled(words[0], arguments), words[2] if len(words) == 3 else ""))
        elif stages:
            stages[-1].instructions.append(one)
        elif one.keyword == "ARG":
            arguments |= one.pairs
        else:
            raise NotUnderstood(f"{one.keyword} before FROM")
    return stages


def _filled(text: str, arguments: Mapping[str, str]) -> str:
    """A text with its `${NAME}` filled in; empty where there is no such argument, as Docker has it."""
    return re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], ""), text)


def _instructions(text: str) -> Iterator[Instruction]:
    if re.match(r"#\s*(syntax|escape|check)\s*=", text):
        raise NotUnderstood("a parser directive")
    joined = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#") or (not line.strip() and not joined):
            continue
        joined += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        keyword, _, rest = joined.strip().partition(" ")
        if keyword not in KEYWORDS or "<<" in rest:
            raise NotUnderstood(joined.strip())
        yield Instruction(keyword, rest.strip())
        joined = ""
    if joined:
        raise NotUnderstood("ends in a continuation")


def faults(text: str) -> list[str]:
    """What breaks the rules at the head of our Dockerfile; empty when nothing does."""
    stages = parse(text)
    found = [fault for stage in stages for fault in _stage_faults(stage, [other.name for other in stages])]
    return found + list(_last_stage_faults(stages[-1]))


def _stage_faults(stage: Stage, names: list[str]) -> Iterator[str]:
    if stage.base not in names and not PINNED.fullmatch(stage.base):
        yield f"base {stage.base} is not pinned by tag and digest"
    for argument in stage.having("ARG"):
        if re.search(r"TOKEN|PASS|SECRET|KEY", argument.rest):
            yield f"ARG {argument.rest} stays in the image's history"
    for run in stage.having("RUN"):
        if FETCHES.search(run.rest):
            yield f"fetches what no lock names: {run.rest}"
        for command in run.rest.split("&&"):
            if not INSTALL.search(command):
                continue
            options = set(command.split())
            if "--no-deps" not in options:
                yield f"may install what is not in the lock: {command.strip()}"
            if "--no-index" not in options and not {"--require-hashes", "--only-binary=:all:"} <= options:
                yield f"installs what is no wheel of the lock: {command.strip()}"


def _last_stage_faults(stage: Stage) -> Iterator[str]:
    user = [one.rest for one in stage.having("USER")]
    if not user or not re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", user[-1]):
        yield "runs as root or under a name that Kubernetes cannot tell from root"
    for keyword in ("RUN", "ENTRYPOINT", "CMD"):
        for one in stage.having(keyword):
            if one.exec_form is None:
                yield f"{keyword} {one.rest} needs a shell"
            elif any(word in ("sh", "bash", "pip") for word in one.exec_form):
                yield f"{keyword} {one.rest} wants what the image does not have"
    for copy in stage.having("COPY"):
        if not copy.words[0].startswith("--from="):
            yield f"COPY {copy.rest} brings sources into the image"
    smoke = [one.exec_form for one in stage.instructions[_index(stage, "USER") :] if one.keyword == "RUN"]
    if ["countersign", "--version"] not in smoke:
        yield "the smoke test is missing, or does not run as the final user"
    if [one.exec_form for one in stage.having("ENTRYPOINT")] != [["countersign"]]:
        yield "the entry point is not countersign"


def _index(stage: Stage, keyword: str) -> int:
    """The position of the last instruction with a keyword; past the end when there is none."""
    positions = [number for number, one in enumerate(stage.instructions) if one.keyword == keyword]
    return positions[-1] if positions else len(stage.instructions)

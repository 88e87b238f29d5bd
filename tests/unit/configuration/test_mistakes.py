"""The mistakes that people make in manifests, and what they are told.

Each file of the folder mistakes is a manifest. Its first lines say what is wrong, which kinds of the good set
(samples.py) it stands for, and every fault and warning that is told, word for word:

    # what is wrong
    # replaces: Store Policy
    # fault: <source> <resource> <path>: <message>
    # warning: ...
"""

from __future__ import annotations

from pathlib import Path

import pytest

from provider.configuration.manifests import read_set
from provider.errors import ConfigurationError
from tests.unit.configuration.samples import PRIVATE_KEY_PEM, ROOT_PEM, good, manifest

MISTAKES = sorted(Path(__file__).with_name("mistakes").glob("*.yaml"))


def read_header(text: str, word: str) -> list[str]:
    """What the header says under a word."""
    return [line.removeprefix(f"# {word}: ") for line in text.splitlines() if line.startswith(f"# {word}: ")]


def findings_of(path: Path) -> tuple[list[str], list[str]]:
    """Faults and warnings of a mistake beside the rest of the good set."""
    text = path.read_text()
    replaced = dict.fromkeys(" ".join(read_header(text, "replaces")).split(), "")
    rest = [manifest(one, f"good-{number}.yaml") for number, one in enumerate(good(**replaced), 1)]
    try:
        return [], list(map(str, read_set([*rest, manifest(text, path.name)]).warnings))
    except ConfigurationError as error:
        return list(map(str, error.faults)), []


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: path.stem)
def test_a_mistake_is_told_word_for_word(path: Path) -> None:
    """Every fault at once, each with file, document, resource and key path."""
    text = path.read_text()
    assert findings_of(path) == (read_header(text, "fault"), read_header(text, "warning"))


def test_every_mistake_says_what_happens() -> None:
    """A file whose header expects nothing would pass without testing anything."""
    for path in MISTAKES:
        text = path.read_text()
        assert read_header(text, "fault") or read_header(text, "warning"), path.name


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: path.stem)
def test_no_fault_repeats_key_material(path: Path) -> None:
    """Whatever is wrong: neither certificate nor key are quoted, they may be what should not be there."""
    faults, warnings = findings_of(path)
    told = "\n".join(faults + warnings)
    for pem in (ROOT_PEM, PRIVATE_KEY_PEM):
        assert not any(line in told for line in pem.splitlines() if len(line) > 20 and "-----" not in line)

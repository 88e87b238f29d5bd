"""README.md is true: the tests that it names are there. These tests start nothing."""

from __future__ import annotations

import re
from pathlib import Path

from tests.interop.peers import CLONE

HERE = Path(__file__).resolve().parent
README = (HERE / "README.md").read_text()


def test_every_test_of_the_table_is_there() -> None:
    """`path::name`, and `::name` in the file that was named before it."""
    file, missing = Path(), []
    named = re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", README)
    assert len(named) > 30
    for path, name in named:
        file = CLONE / path if path else file
        if not re.search(rf"^(async )?def {name}\(", file.read_text(), re.MULTILINE):
            missing.append(f"{file.name}::{name}")
    assert missing == []


def test_every_file_of_tests_is_told_of() -> None:
    assert [file.name for file in HERE.glob("test_*.py") if file.name not in README] == []

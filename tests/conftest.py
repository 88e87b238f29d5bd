"""Options of the whole test-suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--vectors",
        action="append",
        default=[],
        metavar="DIR",
        help="run tests/vectors on this folder (it holds a cases.json); may be given several times",
    )


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: they hold fresh keys, and every worker must collect the same names."""
    return argname if isinstance(val, bytes) else None

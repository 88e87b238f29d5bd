"""Options of the whole test-suite."""

from __future__ import annotations

import os

import hypothesis
import pytest

# No deadline: a slow machine is no bug. In CI the same examples each time, so that a change is judged and not the dice;
# a developer's runs go on searching.
_NO_HURRY = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("developer", **_NO_HURRY)
hypothesis.settings.register_profile("ci", derandomize=True, database=None, **_NO_HURRY)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "developer")


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

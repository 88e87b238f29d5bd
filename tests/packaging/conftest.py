"""The marker of tests that take minutes."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes; runs in CI, or with COUNTERSIGN_SLOW_TESTS=1")

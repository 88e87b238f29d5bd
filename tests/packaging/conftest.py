"""The marker of tests that are too slow for every run."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "slow: takes half a minute or more; runs in CI, or with COUNTERSIGN_SLOW_TESTS=1"
    )

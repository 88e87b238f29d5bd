"""Every fuzz target on its seeds, damaged seeds and any bytes (attack N70), and with atheris where it is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

ROOT: Final = Path(__file__).resolve().parents[2]
RUNS: Final = 3000  # of atheris for each target: some seconds

every_target = pytest.mark.parametrize("name", TARGETS)


@every_target
def test_the_first_seed_is_accepted(name: str) -> None:
    """Or damaging it would try nothing."""
    assert TARGETS[name].run(TARGETS[name].seeds[0])


@every_target
@given(data=st.binary(max_size=300))
def test_n70_any_bytes_keep_the_promise(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


@every_target
@settings(max_examples=200)
@given(data=st.data())
def test_n70_damaged_input_keeps_the_promise(name: str, data: st.DataObject) -> None:
    """A good input of which octets were changed, cut out, doubled or put elsewhere."""
    damaged = bytearray(data.draw(st.sampled_from(TARGETS[name].seeds)))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(damaged)))
        end = data.draw(st.integers(start, min(len(damaged), start + 40)))
        piece = bytes(damaged[start:end])
        damaged[start:end] = data.draw(st.sampled_from([b"", piece * 2, piece[::-1]]) | st.binary(max_size=8))
    TARGETS[name].run(bytes(damaged))


@every_target
def test_n70_atheris_finds_nothing_in_a_short_run(name: str) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install atheris")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, f"-runs={RUNS}", "-seed=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]

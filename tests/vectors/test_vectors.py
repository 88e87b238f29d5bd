"""One test a case of every vector folder: see README.md beside this file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vectors import runner
from tests.vectors.deviations import DEVIATIONS

HERE = Path(__file__).parent
DEFAULT_FOLDERS = (HERE / "generated", HERE.parents[2] / "shared" / "vectors" / "upstream")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    named = [Path(folder) for folder in metafunc.config.getoption("--vectors")]
    folders = named or [folder for folder in DEFAULT_FOLDERS if (folder / "cases.json").is_file()]
    cases = [case for folder in folders for case in runner.load_cases(folder)]
    metafunc.parametrize("case", cases, ids=[f"{case.folder.name}/{case.id}" for case in cases])


async def test_case(case: runner.Case) -> None:
    reason = DEVIATIONS.get(case.id)
    try:
        if case.kind == "oci":
            await runner.judge_layout(case)
        else:
            runner.run(case)
    except AssertionError:
        if reason is None:
            raise
        pytest.xfail(reason)
    assert reason is None, f"no longer a deviation: {reason}"

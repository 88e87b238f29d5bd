"""A soak run of some seconds: real replicas and callers, every disturbance; and that it notices what it looks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.judging import Asker, Ledger, read_outcomes, right_outcome
from bench.processes import Stage
from bench.registry import FAULTS, KINDS, Kind
from bench.soak import Limits, Soak, report

LIMITS = Limits(growth_mib=100, files=200)  # so short a run is all warm-up; what is looked for here are wrong answers
PATIENCE = 30.0  # seconds; a busy machine is not what is tested


def ask(soak: Soak, replica: int, keys: dict[str, Kind]) -> Ledger:
    """One more request, in a ledger of its own, which the run ends with."""
    soak.ledger = ledger = Ledger(patience=PATIENCE)
    asker = Asker(ledger, soak.replicas, list, warm=True)
    asker.ask(soak.replicas[replica], keys)
    asker.close()
    return ledger


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="figures come from /proc")
def test_every_verdict_is_right_whatever_fails_and_a_wrong_or_missing_one_ends_the_run_badly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Stage(tmp_path) as stage:
        soak = Soak(stage, requests=200, references=90, seconds=60, hold=0.2, patience=PATIENCE)
        soak.run()
        assert report(soak, LIMITS, tmp_path), capsys.readouterr().out
        assert all(soak.done[f"registry {fault}"] for fault in FAULTS)
        assert all(soak.done[name] for name in ("key changes", "edits", "bad edits", "kills"))
        counts = soak.ledger.counts
        assert counts["decided"] == soak.sources.taken == 90
        assert all(counts[f"right {kind}"] for kind in KINDS)

        unsigned = next(key for key, kind in soak.sources.hot if kind == "unsigned")
        believed: Kind
        for believed in ("both", "stranger"):  # refused instead of admitted, and refused with another code
            assert ask(soak, 0, {unsigned: believed}).counts["wrong"] == 1
            assert not report(soak, LIMITS, tmp_path)
            assert "1 (at most 0) BROKEN" in capsys.readouterr().out

        soak.replicas[1].kill()
        soak.replicas[1].lives += 1  # nobody told the caller
        counts = ask(soak, 1, dict(soak.sources.hot[:3])).counts
        assert (counts["unanswered"], counts["killed"]) == (1, 0)
        assert not report(soak, LIMITS, tmp_path)


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("first", "admitted", "UNTRUSTED_ROOT"),
        ("second", "UNTRUSTED_ROOT", "admitted"),
        ("both", "admitted", "admitted"),
        ("unsigned", "UNSIGNED", "UNSIGNED"),
        ("stranger", "UNTRUSTED_ROOT", "UNTRUSTED_ROOT"),
    ],
)
def test_the_right_verdict_follows_from_the_image_and_the_trusted_key(kind: Kind, first: str, second: str) -> None:
    assert right_outcome(kind, "first") == first
    assert right_outcome(kind, "second") == second


def test_an_answer_with_an_error_for_a_key_is_no_admission() -> None:
    body = (
        b'{"response":{"items":[{"key":"a","error":"X"},{"key":"b","value":{"isSuccess":true}},'
        b'{"key":"c","value":{"isSuccess":"true","code":"Y"}}],"systemError":"Z"}}'
    )
    assert read_outcomes(body) == ({"a": "X", "b": "admitted", "c": "Y"}, "Z")

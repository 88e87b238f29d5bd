"""Logs and metrics as their readers see them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from provider.errors import UsageError
from provider.figures import FAMILIES
from provider.progress import Stage
from provider.telemetry import STATUSES, LogFormat, Metrics, StageTimes, configure_logging


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_json_line_has_the_names_of_ratify_and_the_request_it_belongs_to() -> None:
    stream = io.StringIO()
    configure_logging("info", LogFormat.JSON, stream)
    structlog.contextvars.bind_contextvars(**{"trace-id": "t1"})
    structlog.get_logger().info("verification response for subject r.test/a:1", errorReason="why", code=None)
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "msg": "verification response for subject r.test/a:1",
        "errorReason": "why",
        "trace-id": "t1",
    }


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_foreign_text_cannot_forge_a_line(log_format: LogFormat) -> None:
    stream = io.StringIO()
    configure_logging("info", log_format, stream)
    forged = 'x\n2026-01-01T00:00:00Z [info     ] admitted\x1b[2J\u2028{"level":"info"}'
    log = structlog.get_logger()
    log.info(f"verification response for subject {forged}", errorReason=forged)
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


def test_a_traceback_is_kept_and_none_of_its_lines_looks_like_an_event() -> None:
    stream = io.StringIO()
    configure_logging("info", LogFormat.TEXT, stream)
    try:
        raise ValueError("one\n2026-01-01 [info] admitted")
    except ValueError:
        structlog.get_logger().exception("it failed", attempts=3)
    first, *rest = stream.getvalue().splitlines()
    assert "it failed" in first
    assert "attempts=3" in first
    assert any("ValueError: one" in line for line in rest)
    assert all(line.startswith("    ") for line in rest)


def test_events_below_the_level_are_left_out() -> None:
    stream = io.StringIO()
    configure_logging("WARN", LogFormat.JSON, stream)
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [json.loads(line)["msg"] for line in stream.getvalue().splitlines()] == ["loud"]


def test_libraries_that_use_logging_take_the_same_way_out() -> None:
    stream = io.StringIO()
    configure_logging("info", LogFormat.JSON, stream)
    logging.getLogger("aiohttp.server").info("each request")
    logging.getLogger("aiohttp.server").error("trouble with %s", "x")
    line = json.loads(stream.getvalue())
    assert line["msg"] == "trouble with x"
    assert line["logger"] == "aiohttp.server"
    assert line["level"] == "error"


def test_logs_go_to_standard_error_as_it_is_when_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    structlog.get_logger().info("hello")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["msg"] == "hello"


def test_an_unknown_level_is_told_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        configure_logging("chatty")
    assert caught.value.detail == ("the log level is unknown (expected debug, info, warning, error, found chatty)")


def test_metrics_keep_the_names_of_ratify() -> None:
    metrics = Metrics()
    metrics.endpoint("verify").observe(0.012)
    metrics.endpoint("mutate").observe(0.003)
    metrics.system_errors.labels("INTERNAL").inc()
    page = metrics.render()[0].decode()
    assert 'ratify_verification_request_bucket{le="30.0"} 1.0' in page
    assert 'ratify_verification_request_bucket{le="4900.0"} 1.0' in page
    assert 'ratify_mutation_request_bucket{le="1800.0"} 1.0' in page
    assert 'ratify_system_error_count_total{error="INTERNAL"} 1.0' in page
    assert 'countersign_build_info{version="' in page


def test_a_scraper_gets_the_format_it_asks_for() -> None:
    metrics = Metrics()
    assert metrics.render()[1].startswith("text/plain")
    body, content_type = metrics.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_n24_no_label_takes_values_from_outside() -> None:
    """Labels take the words of closed lists, but for two: `provider` is a name that whoever runs the provider gave on
    the command line (--rotate-provider) or to a cluster-wide KeyManagementProvider, and `store` a trust store that a
    Verifier names. Tenants give these too for trust anchors, and there their number is limited (test_assembly.py).
    Requests give none."""
    labels = {
        metric._name: set(metric._labelnames) for metric in vars(Metrics()).values() if hasattr(metric, "_labelnames")
    } | {name: set(family.labels) for name, family in FAMILIES.items()}
    closed = {"endpoint", "action", "outcome", "reason", "result", "error", "stage", "verifier", "success"}
    closed |= {"status_code", "cache", "hit", "work", "state"}
    assert set().union(*labels.values()) <= closed | {"provider", "store"}
    assert {name for name, found in labels.items() if "provider" in found} <= {
        *("countersign_provider_present", "countersign_key_material_seen_timestamp_seconds"),
        *("countersign_key_material_complete", "countersign_trust_anchor_not_after_seconds"),
    }
    assert [name for name, found in labels.items() if "store" in found] == [
        "countersign_trust_anchor_not_after_seconds"
    ]


def test_n24_a_registry_cannot_make_up_statuses_to_fill_the_memory() -> None:
    metrics = Metrics()
    for status in (*range(100, 1000), None):
        metrics.count_registry_answer(status)
    lines = [line for line in metrics.render()[0].decode().splitlines() if "registry_request_count_total{" in line]
    assert len(lines) == len(STATUSES) + 2
    assert 'ratify_registry_request_count_total{status_code="429"} 1.0' in lines
    assert 'ratify_registry_request_count_total{status_code="none"} 1.0' in lines


def test_a_stage_is_timed_and_a_verifiers_look_has_ratifys_name_too() -> None:
    metrics = Metrics()
    request = StageTimes(metrics, "t1")
    artifact = request.begin(Stage.ARTIFACT)
    artifact.note("verifier", "notation")
    artifact.note("success", True)
    artifact.begin(Stage.FETCH).end(0.002)
    artifact.end(0.012)
    request.begin(Stage.ARTIFACT).end(1.0)
    request.end(2.0)
    page = metrics.render()[0].decode()
    assert 'countersign_stage_duration_seconds_count{stage="artifact"} 2.0' in page
    assert 'countersign_stage_duration_seconds_count{stage="fetch"} 1.0' in page
    assert 'countersign_stage_duration_seconds_count{stage="key"} 0.0' in page
    assert 'ratify_verifier_duration_sum{success="true",verifier="notation"} 12.0' in page
    assert 'ratify_verifier_duration_count{success="false",verifier="other"} 1.0' in page


def test_n24_a_verifier_of_an_unknown_type_is_another_one() -> None:
    metrics = Metrics()
    look = StageTimes(metrics, "t1").begin(Stage.ARTIFACT)
    look.note("verifier", "x" * 100)
    look.end(0.1)
    assert b"xxx" not in metrics.render()[0]

"""Tracing without a collector: what is said when OpenTelemetry is absent, and how the real one is set up."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from provider.errors import UsageError
from provider.tracing import Tracing, open_tracing

INSTALLED = importlib.util.find_spec("opentelemetry") is not None


def test_it_is_not_imported_by_those_who_do_not_ask_for_it() -> None:
    assert "opentelemetry" not in sys.modules or INSTALLED


@pytest.mark.skipif(INSTALLED, reason="OpenTelemetry is installed")
def test_asking_for_spans_without_opentelemetry_says_what_to_install() -> None:
    for attempt in (open_tracing, lambda: Tracing(object())):
        with pytest.raises(UsageError) as caught:
            attempt()
        assert "countersign[otel]" in caught.value.detail


@pytest.mark.skipif(not INSTALLED, reason="OpenTelemetry is not installed (countersign[otel])")
@pytest.mark.parametrize(("variable", "name"), [(None, "countersign"), ("gate", "gate")])
async def test_spans_are_called_by_the_name_that_the_variable_gives(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, name: str
) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    if variable is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", variable)
    tracing = open_tracing()
    try:
        assert tracing._provider.resource.attributes["service.name"] == name
    finally:
        await tracing.aclose()

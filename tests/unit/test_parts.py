"""Live parts: key providers are loaded, kept fresh, shown and closed, whatever their service does."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from provider.errors import ConfigurationError, Undecided
from provider.interfaces import KeyMaterial
from provider.parts import Environment
from provider.telemetry import Metrics
from tests.unit.assembling import MOMENT, assembler, eventually, scripted
from tests.unit.configuration.samples import good, read

AT = datetime(2026, 11, 23, tzinfo=UTC)


def test_the_environment_says_where_dockers_configuration_is() -> None:
    assert Environment.from_variables({}).docker_config is None
    assert Environment.from_variables({"HOME": "/home/a"}).docker_config == Path("/home/a/.docker/config.json")
    variables = {"HOME": "/home/a", "DOCKER_CONFIG": "/etc/docker"}
    assert Environment.from_variables(variables).docker_config == Path("/etc/docker/config.json")
    with pytest.raises(ConfigurationError):
        Environment.from_variables({"HTTPS_PROXY": "ftp://proxy"})


async def test_a_key_service_that_is_away_holds_up_nothing_and_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys count as not loaded meanwhile, which denies what needs them and no more."""
    away = Undecided("KEYS_UNAVAILABLE", "the vault does not answer")
    keys = scripted(monkeypatch, away, away, RuntimeError("surprise"), ConfigurationError("CERTIFICATE_INVALID", "bad"))
    with capture_logs() as logs:
        async with assembler(retry_seconds=MOMENT) as (one, published):
            await one.apply(read(*good()))
            assert len(published) == 1
            await eventually(lambda: keys.refreshed == 5)
            await asyncio.sleep(10 * MOMENT)
            assert keys.refreshed == 5  # loaded at last, and not told to be refreshed
    assert [entry["event"] for entry in logs if entry["log_level"] != "info"] == [
        "key provider not loaded",
        "key provider not loaded",
        "key provider failed unexpectedly",
        "key provider not loaded",
    ]
    assert keys.closed


async def test_a_key_service_that_asks_to_be_left_alone_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon it would be tried again otherwise."""
    keys = scripted(monkeypatch, Undecided("KEYS_UNAVAILABLE", "limits the request rate", retry_after=3600.0))
    with capture_logs() as logs:
        async with assembler(retry_seconds=MOMENT) as (one, _):
            await one.apply(read(*good()))
            await asyncio.sleep(20 * MOMENT)
            assert keys.refreshed == 1
    assert "limits the request rate" in next(one for one in logs if one["log_level"] == "warning")["reason"]


async def test_the_age_of_key_material_is_shown_where_material_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded, lacking something, not to be had at all; and gone with the provider."""
    metrics = Metrics()
    keys = scripted(monkeypatch, refresh=MOMENT)
    keys.given = KeyMaterial(as_of=AT)

    def shown(name: str) -> float | None:
        return metrics.registry.get_sample_value(f"countersign_key_material_{name}", {"provider": "keys"})

    with capture_logs():
        async with assembler(metrics=metrics) as (one, _):
            await one.apply(read(*good()))
            assert (shown("seen_timestamp_seconds"), shown("complete")) == (AT.timestamp(), 1.0)
            keys.given = KeyMaterial(as_of=AT, missing=("a certificate",))
            await eventually(lambda: shown("complete") == 0.0)
            keys.given = KeyMaterial(as_of=AT)
            await eventually(lambda: shown("complete") == 1.0)
            keys.given = None
            await eventually(lambda: shown("complete") == 0.0)
    assert (shown("seen_timestamp_seconds"), shown("complete")) == (None, None)


async def test_a_slow_key_service_holds_up_a_configuration_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = scripted(monkeypatch, 3600.0)
    with capture_logs() as logs:
        async with assembler(load_seconds=MOMENT, retry_seconds=MOMENT) as (one, published):
            await one.apply(read(*good()))
            assert len(published) == 1
            await eventually(lambda: keys.refreshed == 2)
    assert [entry["reason"] for entry in logs if "reason" in entry] == ["it took over 0.001 s"]


async def test_keys_are_loaded_again_as_often_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is tried again sooner, and the interval then goes on."""
    keys = scripted(monkeypatch, 0.0, Undecided("KEYS_UNAVAILABLE", "away"), refresh=MOMENT)
    async with assembler(retry_seconds=MOMENT / 2) as (one, _):
        await one.apply(read(*good()))
        await eventually(lambda: keys.refreshed >= 5)
    count = keys.refreshed
    await asyncio.sleep(10 * MOMENT)
    assert keys.refreshed == count  # closed is closed


async def test_a_key_provider_whose_material_is_wrong_fails_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = scripted(monkeypatch, ConfigurationError("CERTIFICATE_INVALID", "no certificate in it"))
    async with assembler() as (one, published):
        with pytest.raises(ConfigurationError) as caught:
            await one.apply(read(*good()))
        assert [(fault.path, fault.message) for fault in caught.value.faults] == [
            ("spec.parameters", "no certificate in it")
        ]
        assert keys.closed
        assert not published


async def test_a_build_that_is_cancelled_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = scripted(monkeypatch, 3600.0)
    async with assembler(load_seconds=3600) as (one, published):
        task = asyncio.create_task(one.apply(read(*good())))
        await eventually(lambda: keys.refreshed == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert keys.closed
        assert not published

"""The server's limits refuse values that make no sense."""

from __future__ import annotations

from typing import Any

import pytest

from provider.errors import UsageError
from provider.gatekeeper.settings import ListenerSettings, RequestLimits, ServerSettings


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        (ServerSettings, "verify_seconds", 0),
        (ServerSettings, "mutate_seconds", -1.0),
        (ServerSettings, "settle_seconds", -0.1),
        (ListenerSettings, "head_seconds", 0.0),
        (ListenerSettings, "port", -1),
        (RequestLimits, "max_keys", 0),
    ],
)
def test_a_limit_that_is_not_positive_is_refused_by_name(settings: Any, name: str, value: float) -> None:
    with pytest.raises(UsageError) as caught:
        settings(**{name: value})
    assert name in caught.value.detail


def test_a_server_may_stop_without_settling_and_take_any_free_port() -> None:
    assert ServerSettings(settle_seconds=0).settle_seconds == 0
    assert ListenerSettings(port=0).port == 0


def test_the_defaults_answer_before_the_timeouts_of_the_chart() -> None:
    settings = ServerSettings()
    assert settings.verify_seconds < 4
    assert settings.mutate_seconds < 1
    assert settings.drain_seconds > settings.verify_seconds
    assert ListenerSettings().keepalive_seconds > 90

"""The options of `countersign serve`: what they mean, and which of them cannot stand together. Nothing is run."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import Any

import click
import pytest
from click.testing import CliRunner

from provider.cli.rotation_options import RotationFlags, rotation_flags
from provider.cli.serve import serve
from provider.errors import UsageError
from provider.gatekeeper.rotation_plan import ProviderSpec, RotationSettings

VERIFY, MUTATE = "ratify-provider", "ratify-mutation-provider"
URL = "https://ratify.gatekeeper-system:6001/ratify/gatekeeper/v1/verify"
GIVEN = ("--cert-dir", "tls")
CONFIG = ("--config", "trust")
ROTATE = (
    *("--rotate-certs", "--rotate-service", "ratify", "--rotate-secret", "ratify-tls"),
    *("--rotate-provider", VERIFY, "--rotate-provider", MUTATE),
)


def refusal(*options: str) -> str:
    """What is said of options that are refused."""
    with pytest.raises((UsageError, click.ClickException)) as caught:
        serve.main(list(options), standalone_mode=False)
    if isinstance(caught.value, UsageError):
        return caught.value.detail
    assert isinstance(caught.value, click.ClickException)
    return caught.value.format_message()


def flags(*options: str) -> RotationFlags | None:
    """What the options of the rotation come to."""
    values = serve.make_context("serve", ["--cluster", *options]).params
    return rotation_flags(**{name: values[name] for name in inspect.signature(rotation_flags).parameters})


def settings(*options: str) -> RotationSettings:
    asked = flags(*ROTATE, *options)
    assert asked is not None
    return asked.settings("gatekeeper-system")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--cluster", *CONFIG, *GIVEN), "--cluster and --config contradict"),
        (GIVEN, "a configuration is needed (expected --config PATH for manifests, or --cluster"),
        ((*CONFIG, *GIVEN, "--namespace", "x"), "--namespace has a meaning with --cluster or --rotate-certs only"),
        ((*CONFIG, *GIVEN, "--prewarm-pods"), "--prewarm-pods has a meaning with --cluster only"),
        ((*CONFIG, *GIVEN, "--prewarm-wait-seconds", "5"), "--prewarm-wait-seconds has nothing to wait for"),
        ((*CONFIG, *GIVEN, "--prewarm-wait-seconds", "301"), "is not in the range 0.0<=x<=300.0"),
        ((*CONFIG, *GIVEN, "--prewarm-concurrency", "65"), "is not in the range 1<=x<=64"),
        (("--cluster",), "a serving certificate is needed (expected --cert-dir, or --cert-file with --key-file, or"),
        (("--cluster", *GIVEN, "--cert-file", "c"), "--cert-dir and --cert-file or --key-file contradict"),
        (("--cluster", "--key-file", "k"), "a serving certificate is needed"),
        (("--cluster", *ROTATE, "--cert-file", "c"), "expected one of the two ways; --cert-dir beside --rotate-certs"),
        (("--cluster", *GIVEN, "--rotate-service", "s"), "--rotate-service has a meaning with --rotate-certs only"),
        (("--cluster", *GIVEN, "--rotate-name", "n", "--rotate-ca-days", "9"), "--rotate-name, --rotate-ca-days have"),
        (("--cluster", *GIVEN, "--rotate-leaf-days", "9"), "--rotate-leaf-days has a meaning with"),
        (("--cluster", *GIVEN, "--rotate-settle-seconds", "9"), "--rotate-settle-seconds has a meaning with"),
        (("--cluster", *GIVEN, "--restore-provider", f"a,1,{URL}"), "--restore-provider has a meaning with"),
        (("--cluster", "--rotate-certs"), "needs --rotate-service, --rotate-secret, --rotate-provider too"),
        (("--cluster", *ROTATE[:5]), "--rotate-certs needs --rotate-provider too"),
        (("--cluster", *ROTATE, "--restore-provider", f"other,1,{URL}"), "names other without --rotate-provider"),
        (("--cluster", *ROTATE, *("--restore-provider", f"{VERIFY},1,{URL}") * 2), f"names {VERIFY} twice"),
        (("--cluster", *ROTATE, "--restore-provider", VERIFY), "expected NAME,TIMEOUT,URL with whole seconds"),
        (("--cluster", *ROTATE, "--restore-provider", f"{VERIFY},4.5,{URL}"), f"found {VERIFY},4.5,"),
        (("--cluster", *ROTATE, "--restore-provider", f"{VERIFY},0,{URL}"), "a timeout of at least 1 second"),
        (("--cluster", *ROTATE, "--restore-provider", f"{VERIFY},4,http://x"), "an https URL"),
        ((*CONFIG, *GIVEN, "--no-metrics", "--metrics-port", "1"), "--no-metrics and --metrics-port contradict"),
        ((*CONFIG, *GIVEN, "--verify-deadline", "nan"), "not a finite number"),
        (("--cluster", *ROTATE, "--rotate-ca-days", "0"), "0.0 is not in the range"),
    ],
)
def test_options_that_cannot_stand_together_are_refused_with_what_to_do(options: tuple[str, ...], words: str) -> None:
    assert words in refusal(*options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rotate-leaf-days", "200"), "--rotate-leaf-days is too long"),
        (("--rotate-ca-days", "100"), "expected at most 25: a quarter of --rotate-ca-days"),
        (("--rotate-ca-days", "0.01", "--rotate-leaf-days", "0.001"), "expected less than 28.8, a third of"),
        (("--rotate-service", "Not.A.Label"), "service is not a DNS label"),
        (("--rotate-name", "not a name"), "neither a DNS name nor an IP address"),
    ],
)
def test_times_and_names_with_which_no_rotation_can_work_are_refused(options: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(*options)
    assert words in caught.value.detail


def test_without_a_rotation_there_is_none() -> None:
    assert flags(*GIVEN) is None


def test_the_rotation_of_the_options_is_that_of_the_defaults() -> None:
    assert settings() == RotationSettings("ratify", "gatekeeper-system", "ratify-tls", (VERIFY, MUTATE))


def test_what_follows_from_lifetimes_is_derived_from_them() -> None:
    asked = settings("--rotate-ca-days", "8", "--rotate-leaf-days", "0.5", "--rotate-settle-seconds", "60")
    assert asked.ca_renew_before == timedelta(days=2)
    assert asked.leaf_renew_before == timedelta(hours=4)
    assert asked.retire == timedelta(hours=12)
    assert asked.settle == timedelta(minutes=1)
    brief = settings("--rotate-ca-days", "0.01", "--rotate-leaf-days", "0.002", "--rotate-settle-seconds", "1")
    assert brief.poll_seconds < 6
    assert brief.pause_seconds <= 1


def test_a_provider_to_restore_is_taken_with_its_timeout_and_url() -> None:
    odd = f"{URL}?a=1,2"
    assert settings("--restore-provider", f"{VERIFY},4,{odd}").restore == {VERIFY: ProviderSpec(odd, 4)}


def test_providers_and_names_are_given_by_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ROTATE_CERTS": "1",
        "ROTATE_SERVICE": "ratify",
        "ROTATE_SECRET": "ratify-tls",
        "ROTATE_PROVIDER": f"{VERIFY} {MUTATE}",
    }.items():
        monkeypatch.setenv(f"COUNTERSIGN_{name}", value)
    asked = flags()
    assert asked is not None
    assert asked.providers == (VERIFY, MUTATE)


def test_the_deadlines_are_below_the_providers_timeouts_and_those_below_the_webhooks() -> None:
    values: dict[str, Any] = serve.make_context("serve", ["--cluster", *GIVEN]).params
    assert (values["verify_deadline"], values["mutate_deadline"]) == (3.8, 0.8)  # of 4 and 1, of 5 and 2


def test_help_shows_every_option_under_a_heading() -> None:
    shown = CliRunner().invoke(serve, ["--help"], terminal_width=120).output
    headings = [line[:-1] for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == [
        "What is trusted",
        "Ports",
        "Serving certificate that is given",
        "Serving certificate that the provider makes and renews itself",
        "Who may call",
        "Time to answer in",
        "Limits",
        "Warm start",
        "Log",
        "Other options",
    ]
    for parameter in serve.params:
        assert parameter.opts[0] in shown
    assert shown.partition("Other options:")[2].split()[:1] == ["--help"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("not a header", "is no name of a header"),
        ("", "is no name of a header"),
        ("X\r\nInjected", "is no name of a header"),
        ("authorization", "a meaning of its own"),
        ("Host", "a meaning of its own"),
        ("Content-Length", "a meaning of its own"),
        ("Accept", "a meaning of its own"),
        ("Transfer-Encoding", "a meaning of its own"),
    ],
)
def test_the_header_for_registries_must_be_one_that_only_says_something(name: str, reason: str) -> None:
    with pytest.raises(click.BadParameter, match=reason):
        serve.make_context("serve", ["--cluster", *GIVEN, "--registry-trace-header", name])


def test_registries_are_told_nothing_and_no_spans_are_made_by_default() -> None:
    values: dict[str, Any] = serve.make_context("serve", ["--cluster", *GIVEN]).params
    assert (values["registry_trace_header"], values["otel"]) == (None, False)
    given = serve.make_context("serve", ["--cluster", *GIVEN, "--registry-trace-header", "traceparent"]).params
    assert given["registry_trace_header"] == "traceparent"

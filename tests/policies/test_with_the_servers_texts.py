"""The template reads what the server writes: verdicts, item errors and system errors of the real protocol code."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

from provider.demo.admission import ExternalData, Template, review_of
from provider.errors import CODES, InvalidKey, Refused, Undecided
from provider.gatekeeper import protocol
from provider.oci import Digest, Reference
from provider.reports import Verdict, VerifierReport, verdict_tail
from tests.policies.engines import POLICIES

TEMPLATE: Final = Template.parse((POLICIES / "template.yaml").read_bytes())
TRACE: Final = "5b9a3c6e7d0f4d8e9a672d3f1a0c4b11"
AT: Final = datetime(2026, 6, 1, tzinfo=UTC)


def _messages(images: list[str], *items: bytes, system_error: str = "") -> tuple[str, ...]:
    """What people read when the server answers with these items."""
    body = protocol.render_response(items, system_error=system_error)
    containers = [{"name": f"c{number}", "image": image} for number, image in enumerate(images)]
    manifest: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": containers},
    }
    return TEMPLATE.violations(review_of(manifest), ExternalData.from_response(200, body))


def _item(image: str, verdict: Verdict) -> bytes:
    tail = verdict_tail(trace_id=TRACE, at=AT)
    return protocol.value_item(image, b"{" + verdict.render(Reference.parse(image)) + tail)


def test_a_successful_verdict_admits() -> None:
    verdict = Verdict(True, Digest.of(b"x"), (VerifierReport(True, name="v"),))
    assert _messages(["r.test/a:1"], _item("r.test/a:1", verdict)) == ()


def test_a_refusing_verdict_is_told_with_code_reason_and_trace() -> None:
    error = Refused("SIGNATURE_EXPIRED", "the signature expired on 2026-01-01")
    verdict = Verdict(False, Digest.of(b"x"), (VerifierReport.failed(error, message="m"),), error.code, error.detail)
    assert _messages(["r.test/a:1"], _item("r.test/a:1", verdict)) == (
        "Subject failed verification: r.test/a:1: SIGNATURE_EXPIRED: the signature expired on 2026-01-01 "
        f"(trace-id {TRACE})",
    )


def test_a_refusal_that_reached_the_server_as_an_exception_is_told_alike() -> None:
    fragment = protocol.refusal_fragment("r.test/a:1", Refused("UNSIGNED", "none"))
    item = protocol.value_item("r.test/a:1", b"{" + fragment + verdict_tail(trace_id=TRACE, at=AT))
    assert _messages(["r.test/a:1"], item) == (
        f"Subject failed verification: r.test/a:1: UNSIGNED: none (trace-id {TRACE})",
    )


def test_an_item_error_is_told_whole() -> None:
    error = InvalidKey("REFERENCE_INVALID", "image reference has a bad tag")
    item = protocol.error_item("r.test/a:-", error, trace_id=TRACE)
    (message,) = _messages(["r.test/a:-"], item)
    assert message == f"Subject failed verification: r.test/a:-: {protocol.explain(error)} (trace-id {TRACE})"


def test_each_image_is_told_its_own_cause_of_a_system_error() -> None:
    images = [f"r.test/{letter}:1" for letter in "abc"]
    errors = {
        images[0]: Undecided("REGISTRY_UNAVAILABLE", "r.test cannot be connected to"),
        images[1]: Undecided("REGISTRY_UNAVAILABLE", "r.test answered", expected="200", found="503"),
        images[2]: Undecided("DEADLINE_EXCEEDED", "not finished"),
    }
    messages = _messages(images, system_error=protocol.system_error(errors, trace_id=TRACE))
    assert messages == tuple(
        f"Subject failed verification: {image}: {errors[image].code}: {errors[image].detail} (trace-id {TRACE})"
        for image in images
    )


def test_every_code_of_an_undecided_image_survives_the_way_to_the_user() -> None:
    for code in (code for code, entry in CODES.items() if entry.kind is Undecided.kind):
        text = protocol.system_error({"r.test/a:1": Undecided(code, "why")}, trace_id=TRACE)
        (message,) = _messages(["r.test/a:1"], system_error=text)
        assert message == f"Subject failed verification: r.test/a:1: {code}: why (trace-id {TRACE})"


def test_a_request_that_was_refused_as_a_whole_is_told_to_every_image() -> None:
    error = Undecided("OVERLOADED", "512 requests are being answered already")
    text = protocol.request_error(error, trace_id=TRACE)
    for message in _messages(["r.test/a:1", "r.test/b:1"], system_error=text):
        assert protocol.explain(error) in message
        assert message.endswith(f"(trace-id {TRACE})")


def test_the_value_that_the_template_reads_is_json_of_the_server() -> None:
    verdict = Verdict(False, None, (), "UNSIGNED", "none")
    document = json.loads(protocol.render_response([_item("r.test/a:1", verdict)]))
    assert document["response"]["items"][0]["value"]["code"] == "UNSIGNED"
    assert _messages(["r.test/a:1"], _item("r.test/a:1", verdict)) == (
        f"Subject failed verification: r.test/a:1: UNSIGNED (trace-id {TRACE})",
    )

"""The external data protocol: what Gatekeeper may send, and what it gets."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.errors import InvalidKey, Refused, Undecided
from provider.gatekeeper import protocol
from provider.gatekeeper.settings import RequestLimits
from provider.oci import Reference
from provider.reports import verdict_tail

LIMITS = RequestLimits(max_body_bytes=20_000, max_keys=5, max_key_length=100)
AT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
REFERENCE = Reference.parse("registry.test/app:v1")
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def request_body(keys: Any, *, version: Any = protocol.API_VERSION, kind: Any = "ProviderRequest") -> bytes:
    return json.dumps({"apiVersion": version, "kind": kind, "request": {"keys": keys}}).encode()


def refused_with(body: bytes) -> str:
    with pytest.raises(Undecided) as caught:
        protocol.parse_request(body, LIMITS)
    assert caught.value.code == "REQUEST_INVALID"
    return caught.value.detail


def keys_or_code(body: bytes) -> tuple[str, ...] | str:
    try:
        return protocol.parse_request(body, LIMITS)
    except Undecided as error:
        return error.code


def rendered(*items: bytes, **members: Any) -> dict[str, Any]:
    document = json.loads(protocol.render_response(items, **members))
    assert document["apiVersion"] == "externaldata.gatekeeper.sh/v1beta1"
    assert document["kind"] == "ProviderResponse"
    response: dict[str, Any] = document["response"]
    return response


# -- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["externaldata.gatekeeper.sh/v1beta1", "externaldata.gatekeeper.sh/v1alpha1"])
def test_a_request_of_gatekeeper_gives_its_keys_in_order(version: str) -> None:
    assert protocol.parse_request(request_body(["b", "a", ""], version=version), LIMITS) == ("b", "a", "")


def test_an_empty_list_of_keys_is_a_request() -> None:
    assert protocol.parse_request(request_body([]), LIMITS) == ()


def test_n21_duplicate_keys_are_answered_once_each() -> None:
    assert protocol.parse_request(request_body(["b", "a", "b", "a"]), LIMITS) == ("b", "a")


def test_keys_that_differ_only_in_line_breaks_stay_apart() -> None:
    assert protocol.parse_request(request_body(["a\n", "a", "a\r"]), LIMITS) == ("a\n", "a", "a\r")


def test_members_of_a_later_protocol_are_ignored() -> None:
    document = json.loads(request_body(["a"]))
    document["metadata"] = {"uid": "1"}
    document["request"]["operation"] = "CREATE"
    assert protocol.parse_request(json.dumps(document).encode(), LIMITS) == ("a",)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b"[1]", "the body is not a JSON object (found a list)"),
        (b'"text"', "the body is not a JSON object (found a string)"),
        (b"null", "the body is not a JSON object (found nothing)"),
        (b"{}", "apiVersion is not the external data protocol's"),
        (request_body(["a"], version="v1"), "found v1"),
        (request_body(["a"], version=["v1"]), "found a list"),
        (request_body(["a"], kind="ProviderResponse"), "(expected ProviderRequest, found ProviderResponse)"),
        (request_body(["a"], kind=None), "kind is not that of a request"),
        (request_body("a"), "request.keys is not a list of strings (found a string)"),
        (request_body({"a": 1}), "request.keys is not a list of strings (found an object)"),
        (request_body(["a", 7]), "request.keys[1] is not a string (found a number)"),
        (request_body(["a", None]), "request.keys[1] is not a string (found nothing)"),
        (request_body([True]), "request.keys[0] is not a string (found a boolean)"),
        (request_body(["a" * 101]), "too long (expected at most 100 characters, found 101)"),
        (request_body(["a"] * 6), "request.keys has too many keys (expected at most 5, found 6)"),
        (b" " * 20_001, "more than 20000 bytes"),
        (b"[" * 20_000, "nested deeper than"),
        (request_body(["a"]).replace(b'["a"]', b'["a"],"keys":["b"]'), "duplicate member name"),
        (request_body(["a"]).replace(b'"a"', b'"\\ud800"'), "surrogate"),
    ],
)
def test_n21_what_is_not_a_provider_request_is_refused_with_the_reason(body: bytes, told: str) -> None:
    assert told in refused_with(body)


def test_n21_a_request_member_that_is_no_object_is_refused() -> None:
    body = json.dumps({"apiVersion": protocol.API_VERSION, "kind": "ProviderRequest", "request": ["a"]}).encode()
    assert "request is not an object (found a list)" in refused_with(body)


@given(st.binary(max_size=300))
def test_n70_any_bytes_are_keys_or_a_request_error(body: bytes) -> None:
    outcome = keys_or_code(body)
    assert outcome == "REQUEST_INVALID" or all(isinstance(key, str) for key in outcome)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | KEYS,
        lambda children: st.lists(children, max_size=4) | st.dictionaries(KEYS, children, max_size=4),
        max_leaves=10,
    )
)
def test_n70_any_json_for_keys_is_keys_or_a_request_error(value: Any) -> None:
    outcome = keys_or_code(request_body(value))
    assert outcome == "REQUEST_INVALID" or outcome == tuple(dict.fromkeys(value))


# -- responses --------------------------------------------------------------------------------------------------------


def test_values_are_spliced_in_as_they_are() -> None:
    value = b'{"isSuccess":true,"n":1.50,"text":"\xc3\xa4"}'
    assert value in protocol.render_response([protocol.value_item("a", value)])
    assert rendered(protocol.value_item("a", value))["items"] == [{"key": "a", "value": json.loads(value)}]


@given(st.lists(KEYS, max_size=5))
def test_n34_the_key_that_comes_back_is_exactly_the_key_that_was_sent(keys: list[str]) -> None:
    items = [protocol.string_item(key, key) for key in keys]
    assert rendered(*items)["items"] == [{"key": key, "value": key} for key in keys]


def test_a_complete_verification_has_neither_system_error_nor_idempotent() -> None:
    assert rendered(protocol.value_item("a", b"1")) == {"items": [{"key": "a", "value": 1}]}


def test_an_answer_without_items_is_still_a_list() -> None:
    assert rendered(system_error="why") == {"items": [], "systemError": "why"}


def test_mutation_is_idempotent_and_its_system_error_blank() -> None:
    assert rendered(protocol.string_item("a", "a@b"), idempotent=True) == {
        "idempotent": True,
        "items": [{"key": "a", "value": "a@b"}],
    }


def test_an_item_error_tells_code_reason_remedy_and_trace_id() -> None:
    error = InvalidKey("REFERENCE_INVALID", "image reference is empty", found='"quoted"\n')
    (item,) = rendered(protocol.error_item("[a]b]img", error, trace_id="t1"))["items"]
    assert item == {
        "key": "[a]b]img",
        "error": 'REFERENCE_INVALID: image reference is empty (found "quoted"�). Write the image as '
        "registry/repository:tag or registry/repository@sha256:<64 hex digits>. (trace-id t1)",
    }


def test_a_refusal_that_comes_as_an_exception_is_a_verdict_that_refuses() -> None:
    error = Refused("IMAGE_NOT_FOUND", "no such tag", found="v9")
    fragment = protocol.refusal_fragment("registry.test/app:v9\n", error)
    value = json.loads(b"{" + fragment + verdict_tail(trace_id="t", at=AT))
    assert value["isSuccess"] is False
    assert value["version"] == "0.2.0"
    assert value["code"] == "IMAGE_NOT_FOUND"
    (report,) = value["verifierReports"]
    assert report["isSuccess"] is False
    assert report["errorReason"] == "no such tag (found v9)"
    assert report["subject"] == "registry.test/app:v9�"
    assert report["remediation"]


# -- systemError ------------------------------------------------------------------------------------------------------


def undecided(code: str, reason: str, **members: Any) -> Undecided:
    return Undecided(code, reason, **members)


def test_missing_keys_are_grouped_by_code_and_reason() -> None:
    text = protocol.system_error(
        {
            "r.test/a": undecided("REGISTRY_THROTTLED", "r.test answers 429", remediation="Wait."),
            "s.test/b": undecided("REGISTRY_UNAVAILABLE", "no route", remediation="Mend it."),
            "r.test/c": undecided("REGISTRY_THROTTLED", "r.test answers 429", remediation="Wait."),
            "t.test/d": undecided("REGISTRY_THROTTLED", "t.test answers 429", remediation="Wait longer."),
        },
        trace_id="t1",
    )
    assert text == (
        "REGISTRY_THROTTLED: r.test answers 429 [r.test/a, r.test/c]; t.test answers 429 [t.test/d]. Wait. | "
        "REGISTRY_UNAVAILABLE: no route [s.test/b]. Mend it. (trace-id t1)"
    )


def test_many_missing_keys_are_named_in_part_and_counted() -> None:
    late = undecided("DEADLINE_EXCEEDED", "not decided", remediation="Retry.")
    text = protocol.system_error({f"k{number}": late for number in range(12)}, trace_id="t")
    assert text == (
        "DEADLINE_EXCEEDED: not decided [k0, k1, k2, k3, k4, k5, k6, k7, k8, k9 and 2 more]. Retry. (trace-id t)"
    )


def test_many_different_reasons_are_told_in_part_and_counted() -> None:
    errors = {f"k{number}": undecided("INTERNAL", f"reason {number}", remediation="R.") for number in range(7)}
    text = protocol.system_error(errors, trace_id="t")
    assert "reason 4 [k4]; and 2 more images. R. (trace-id t)" in text
    assert "reason 5" not in text


@given(
    st.dictionaries(st.text(max_size=5000), st.sampled_from(["OVERLOADED", "INTERNAL"]), max_size=30),
    st.text(max_size=900),
)
def test_a_system_error_is_one_bounded_line_that_ends_with_the_trace_id(codes: dict[str, str], reason: str) -> None:
    errors = {key: undecided(code, reason + key) for key, code in codes.items()}
    for text in (
        protocol.system_error(errors, trace_id="abc"),
        protocol.request_error(undecided("INTERNAL", reason), trace_id="abc"),
    ):
        assert len(text) <= protocol.MAX_SYSTEM_ERROR
        assert text.endswith("(trace-id abc)")
        assert text.isprintable()

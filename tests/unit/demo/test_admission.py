"""Gatekeeper's side as the demo plays it: what the wire becomes in Rego, what Rego decides, what kubectl prints."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.demo.admission import (
    Constraint,
    ExternalData,
    Template,
    denial,
    policies_folder,
    review_of,
)
from provider.errors import ConfigurationError, Undecided

TEMPLATE = Template.parse((policies_folder() / "template.yaml").read_bytes())
POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p"},
    "spec": {"containers": [{"name": "c", "image": "r.test/a:1"}]},
}


def _body(**response: Any) -> bytes:
    return json.dumps({"apiVersion": "x", "kind": "ProviderResponse", "response": response}).encode()


def test_items_become_pairs_and_errors_are_kept_apart_from_values() -> None:
    body = _body(
        items=[{"key": "a", "value": {"isSuccess": True}}, {"key": "b", "error": "bad", "value": 1}], systemError="late"
    )
    answer = ExternalData.from_response(200, body)
    assert answer.to_json() == {
        "responses": [("a", {"isSuccess": True})],
        "errors": [("b", "bad")],
        "status_code": 200,
        "system_error": "late",
    }


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"response":{}}', b'{"response":{"items":[7,{"key":7}]}}'])
def test_an_answer_without_items_has_empty_lists(body: bytes) -> None:
    answer = ExternalData.from_response(500, body)
    assert (answer.responses, answer.errors, answer.status_code, answer.system_error) == ([], [], 500, "")


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"a":1,"a":2}'])
def test_an_unreadable_answer_has_null_lists_and_denies(body: bytes) -> None:
    answer = ExternalData.from_response(200, body)
    assert (answer.responses, answer.errors) == (None, None)
    assert TEMPLATE.violations(review_of(POD), answer) == (
        "Subject failed verification: r.test/a:1: the provider's answer cannot be read",
    )


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_that_admits_nothing(body: bytes) -> None:
    answer = ExternalData.from_response(200, body)
    assert not answer.responses or all(name != "r.test/a:1" for name, _ in answer.responses)


def test_the_question_holds_every_image_once_and_the_yes_to_it_admits() -> None:
    manifest = {**POD, "spec": {"containers": [*POD["spec"]["containers"], {"name": "d", "image": "r.test/a:1"}]}}
    review = review_of(manifest)
    assert TEMPLATE.keys(review) == ("r.test/a:1",)
    assert TEMPLATE.violations(review, ExternalData([("r.test/a:1", {"isSuccess": True})], [], 200, "")) == ()


def test_a_review_is_a_creation_in_the_default_namespace_unless_the_manifest_names_another() -> None:
    assert review_of(POD)["namespace"] == "default"
    assert review_of({**POD, "metadata": {"name": "p", "namespace": "n"}})["object"]["metadata"]["namespace"] == "n"
    review = review_of({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}, operation="UPDATE")
    assert review["kind"] == {"group": "apps", "version": "v1", "kind": "Deployment"}
    assert review["operation"] == "UPDATE"


def test_kubectl_prints_each_violation_with_its_constraint() -> None:
    assert denial("ratify-constraint", ["one", "two"]) == (
        'Error from server (Forbidden): admission webhook "validation.gatekeeper.sh" denied the request: '
        "[ratify-constraint] one\n[ratify-constraint] two"
    )


@pytest.mark.parametrize(
    "rego",
    [
        "package t\nviolation contains 1 if {",  # does not parse
        "package t\nviolation := external_data(1)",  # has no value
        "package t\nviolation := true",  # is no set
        "package t",
    ],
)
def test_rego_that_comes_to_no_result_is_an_error_and_never_an_admission(rego: str) -> None:
    with pytest.raises(Undecided) as caught:
        Template("t", "T", "t", rego).violations(review_of(POD), None)
    assert caught.value.code == "INTERNAL"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "7",
        "kind: Pod",
        "kind: ConstraintTemplate",
        "kind: ConstraintTemplate\nspec: {targets: [7]}",
        "kind: ConstraintTemplate\nspec: {targets: [{code: [{engine: Rego, source: {version: v0, rego: x}}]}]}",
        "kind: ConstraintTemplate\nspec: {targets: [{code: [{engine: Rego, source: {version: v1, rego: x}}]}]}",
    ],
)
def test_what_is_no_template_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Template.parse(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "kind: 7",
        "kind: R",
        "kind: R\nmetadata: {name: r}\nspec: {match: 7}",
        "kind: R\nmetadata: {name: r}\nspec: {match: {kinds: [], labelSelector: {}}}",
    ],
)
def test_a_constraint_that_matches_in_ways_not_imitated_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Constraint.parse(text.encode())


def test_a_constraint_without_namespaces_matches_all_and_denies_by_default() -> None:
    text = 'kind: R\nmetadata: {name: r}\nspec: {match: {kinds: [{apiGroups: [""], kinds: [Pod]}]}}'
    constraint = Constraint.parse(text.encode())
    assert constraint.action == "deny"
    assert constraint.matches(review_of(POD))
    assert not constraint.matches(review_of({**POD, "kind": "Job", "apiVersion": "batch/v1"}))

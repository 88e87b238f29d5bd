"""What people are told of the SDK's exceptions: one sentence for each, without what a server said in its own words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    DecodeError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.identity import CredentialUnavailableError
from hypothesis import given
from hypothesis import strategies as st

from provider.azure.explanations import AzureIdentityError, entra_code, explain
from provider.azure.sdk import Answered
from provider.egress import AddressClass, EgressRefusedError

ASKED = "Entra ID at login.example"


class Response:
    """As much of a response as the SDK's exceptions hold."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.status_code = status
        self.reason = "Because"
        self.headers = headers or {}
        self.content_type = "application/json"

    def text(self, encoding: str | None = None) -> str:
        return "{}"


def aadsts(code: int, text: str = "text") -> ClientAuthenticationError:
    said = f"AADSTS{code}: {text} Trace ID: x Correlation ID: 5e2d1a4f-1111-2222-3333-c4b1a5b0f6aa Timestamp: now"
    return ClientAuthenticationError(message=f"(invalid_client) {said}", response=Response(401))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (70021, "az identity federated-credential create"),
        (700211, "az identity federated-credential create"),
        (700212, "AZURE_KUBERNETES_TOKEN_PROXY"),
        (700213, "az identity federated-credential create"),
        (700024, "clocks"),
        (700027, "federated credential"),
        (700016, "az identity show"),
        (90002, "tenant"),
        (90061, "oidcIssuerProfile"),
        (1002012, "Report it"),
        (7000112, "Enable it"),
        (53003, "Except the identity"),
        (500011, "AZURE_AUTHORITY_HOST"),
        (4242, "login.microsoftonline.com/error"),
    ],
)
def test_a_code_of_entra_says_what_to_do(code: int, words: str) -> None:
    trouble = explain(aadsts(code), ASKED)
    assert entra_code(aadsts(code)) == code
    assert trouble.reason.startswith(
        f"{ASKED} says AADSTS{code}, correlation id 5e2d1a4f-1111-2222-3333-c4b1a5b0f6aa: "
    )
    assert trouble.remediation is not None
    assert words in trouble.remediation


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ServiceRequestError("x"), "makes no sense (ServiceRequestError)"),
        (ServiceResponseError("x"), "makes no sense (ServiceResponseError)"),
        (IncompleteReadError("x"), "makes no sense (IncompleteReadError)"),
        (AzureError("x"), "makes no sense (AzureError)"),
        (HttpResponseError("x"), "makes no sense (HttpResponseError)"),
        (DecodeError("x"), "makes no sense (DecodeError)"),
        (ValueError("x"), "makes no sense (ValueError)"),
        (json.JSONDecodeError("x", "secret-document", 0), "makes no sense (JSONDecodeError)"),
        (KeyError("secret"), "makes no sense (KeyError)"),
        (RecursionError(), "makes no sense (RecursionError)"),
        (TimeoutError(), "did not answer in time"),
        (EgressRefusedError("10.0.0.1", AddressClass.PRIVATE), "is an address of the class private"),
        (CredentialUnavailableError("x"), "makes no sense (CredentialUnavailableError)"),
    ],
)
def test_an_exception_without_an_answer_says_what_happened(error: Exception, words: str) -> None:
    trouble = explain(error, ASKED)
    assert words in trouble.reason
    assert "secret" not in trouble.reason
    assert trouble.retry_after is None


@pytest.mark.parametrize(
    ("status", "words", "wait"),
    [
        (429, "limits the request rate (429)", 7.0),
        (503, "answered 503", 7.0),
        (403, "answered 403", 7.0),
        (200, "answered 200 without a token that can be read", None),
        (302, "answered 302 without a token that can be read", None),
    ],
)
def test_an_answer_counts_whether_the_exception_holds_it_or_not(status: int, words: str, wait: float | None) -> None:
    fields = {"Retry-After": "7"}
    held = HttpResponseError(message="x", response=Response(status, fields))  # type: ignore[arg-type]
    for trouble in (explain(held, ASKED), explain(ValueError(), ASKED, Answered(status, fields))):
        assert words in trouble.reason
        assert trouble.retry_after == wait


def test_an_error_code_of_oauth_is_told() -> None:
    error = ClientAuthenticationError(message="(invalid_grant) text of the server", response=Response(400))  # type: ignore[arg-type]
    assert explain(error, ASKED).reason == f"{ASKED} answered 400 (invalid_grant)"


def test_a_time_limit_counts_before_an_answer_that_came_earlier() -> None:
    assert "did not answer in time" in explain(TimeoutError(), ASKED, Answered(429, {})).reason


_TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=60)


@given(_TEXTS, st.sampled_from([ValueError, AzureError, ClientAuthenticationError, RuntimeError, OSError]))
def test_n11_no_text_of_a_server_comes_through(text: str, kind: type[Exception]) -> None:
    marked = f"{text}eyJhbGciOi.SECRET"
    error: Any = kind(marked)
    trouble = explain(error, ASKED)
    assert isinstance(trouble, AzureIdentityError)
    assert "SECRET" not in f"{trouble}{trouble!r}{trouble.remediation}"

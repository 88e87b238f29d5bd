"""What the exceptions of the Azure SDK mean: each has a sentence, none passes on what a server wrote."""

from __future__ import annotations

import json
import socket
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    DecodeError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceRequestTimeoutError,
    ServiceResponseError,
    ServiceResponseTimeoutError,
)
from hypothesis import given
from hypothesis import strategies as st

from provider.azure.explanations import AzureIdentityError
from provider.egress import AddressClass, EgressRefusedError
from provider.key_management.key_vault_access import Passing, Trouble, VaultError
from provider.key_management.key_vault_errors import ForeignHostError, MalformedAnswerError
from provider.key_management.key_vault_errors import explain as explain_any

VAULT = "contoso.vault.azure.net"
KEY = ConnectionKey(VAULT, 443, True, True, None, None, None)
SECRET = "eyJhbGciOi-hunter2"


def explain(error: BaseException) -> Trouble:
    trouble = explain_any(error, vault=VAULT, asked="secret release")
    assert trouble.error.code == "KEYS_UNAVAILABLE"
    assert trouble.error.remediation
    assert SECRET not in str(trouble.error)
    assert SECRET not in str(VaultError(trouble))
    return trouble


def answered(status: int, body: bytes | None = None, headers: dict[str, str] | None = None) -> HttpResponseError:
    """An error of the SDK, made from an answer as the SDK makes it."""
    response = Mock(status_code=status, reason="x", headers=headers or {}, spec=["status_code", "reason", "headers"])
    response.text = lambda *_: (body or b"").decode()
    return HttpResponseError(response=response)


def refused(status: int, code: str, inner: str | None = None, message: str = SECRET) -> HttpResponseError:
    """An answer with Key Vault's error object."""
    error: dict[str, Any] = {"code": code, "message": message, "innererror": {"code": inner} if inner else None}
    return answered(status, json.dumps({"error": error}).encode())


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (refused(401, "Unauthorized"), "refuses the token", "tenantID"),
        (refused(403, "Forbidden", "ForbiddenByRbac"), "does not let the identity in", "Key Vault Secrets User"),
        (refused(403, "Forbidden", "AccessDenied"), "does not let the identity in", "access policy"),
        (refused(403, "Forbidden", "ForbiddenByFirewall"), "does not let the identity in", "firewall"),
        (refused(403, "Forbidden", "ForbiddenByConnection"), "does not let the identity in", "private endpoint"),
        (refused(403, "Forbidden"), "does not let the identity in", "Key Vault Secrets User"),
        (answered(403, b"<html>"), "does not let the identity in", "Key Vault Secrets User"),
        (refused(403, "Forbidden", "SecretDisabled"), "says that it is disabled", "Enable the version"),
        (refused(404, "SecretNotFound"), "has no such thing", "recover"),
        (refused(429, "Throttled"), "limits the request rate", "refreshInterval"),
        (refused(500, "InternalServerError"), "failed", "health"),
        (answered(302), "leads elsewhere, which is not followed", "vaultURI"),
        (answered(418, b"teapot"), "failed", "health"),
    ],
)
def test_an_answer_is_explained_with_what_to_do(error: HttpResponseError, reason: str, remedy: str) -> None:
    trouble = explain(error)
    assert trouble.error.reason == f"{VAULT} {reason}, asked for secret release"
    assert remedy in (trouble.error.remediation or "")
    assert trouble.status == error.status_code
    assert str(error.status_code) in str(trouble.error)


def test_a_missing_permission_is_named() -> None:
    message = f"Caller is not authorized.\nAction: 'Microsoft.KeyVault/vaults/secrets/getSecret/action'\n{SECRET}"
    trouble = explain(refused(403, "Forbidden", "ForbiddenByRbac", message))
    assert "(it lacks Microsoft.KeyVault/vaults/secrets/getSecret/action)" in trouble.error.reason
    assert trouble.error.found == "403 ForbiddenByRbac"
    assert trouble.lacks_permission
    assert not trouble.is_disabled


def test_what_is_disabled_is_an_answer_and_a_firewall_is_no_lack_of_permission() -> None:
    assert explain(refused(403, "Forbidden", "SecretDisabled")).is_disabled
    assert explain(refused(403, "Forbidden", "KeyDisabled")).is_disabled
    assert not explain(refused(404, "SecretDisabled")).is_disabled
    assert not explain(refused(403, "Forbidden", "SecretDisabled")).lacks_permission
    assert not explain(refused(403, "Forbidden", "ForbiddenByFirewall")).lacks_permission


@pytest.mark.parametrize("code", [f"{SECRET} ", "a" * 65, ["x"], None, 7])
def test_a_code_that_is_none_is_not_passed_on(code: Any) -> None:
    trouble = explain(answered(403, json.dumps({"error": {"code": code, "message": {}}}).encode()))
    assert (trouble.code, trouble.error.found) == ("", "403")


@pytest.mark.parametrize(
    ("headers", "wait", "passing"),
    [
        ({"Retry-After": "7"}, 7.0, Passing.NO),
        ({"Retry-After": "3600"}, 3600.0, Passing.NO),
        ({"Retry-After": "999999"}, 3600.0, Passing.NO),
        ({}, None, Passing.AT_ONCE),
    ],
)
def test_a_wait_that_is_asked_for_is_kept(headers: dict[str, str], wait: float | None, passing: Passing) -> None:
    trouble = explain(answered(503, b"", headers))
    assert (trouble.error.retry_after, trouble.passing) == (wait, passing)


def test_who_limits_the_rate_is_not_asked_again_at_once() -> None:
    assert explain(answered(429)).passing is Passing.NO
    assert explain(answered(408)).passing is Passing.AT_ONCE
    assert explain(answered(401)).passing is Passing.WITH_A_NEW_TOKEN


def connection(cause: OSError) -> ServiceRequestError:
    inner = aiohttp.ClientConnectorError(KEY, cause)
    return ServiceRequestError(inner, error=inner)


@pytest.mark.parametrize(
    ("error", "told", "passing"),
    [
        (AzureIdentityError("Entra says no", "do this", found="AADSTS70021"), f"no token for {VAULT}", Passing.NO),
        (AzureIdentityError("Entra says no"), f"no token for {VAULT}", Passing.NO),
        (ForeignHostError("evil.example"), "leads to another host", Passing.NO),
        (TimeoutError(), "did not answer in time", Passing.AT_ONCE),
        (ServiceRequestTimeoutError("x"), "did not answer in time", Passing.AT_ONCE),
        (ServiceResponseTimeoutError("x"), "did not answer in time", Passing.AT_ONCE),
        (connection(ConnectionRefusedError(111, "refused")), "asked for secret release", Passing.AT_ONCE),
        (connection(socket.gaierror(-2, "unknown")), "asked for secret release", Passing.AT_ONCE),
        (connection(EgressRefusedError("127.0.0.1", AddressClass.LOOPBACK)), "loopback", Passing.NO),
        (ServiceRequestError("broken", error=OSError()), "closed the connection", Passing.AT_ONCE),
        (ServiceRequestError("broken"), "closed the connection", Passing.AT_ONCE),
        (IncompleteReadError("cut"), "cut its answer short", Passing.AT_ONCE),
        (ServiceResponseError("cut"), "cut its answer short", Passing.AT_ONCE),
        (ValueError("The challenge resource 'x' does not match"), "wants a token for another service", Passing.NO),
        (json.JSONDecodeError("bad", "<html>", 0), "an answer that is not Key Vault's", Passing.NO),
        (DecodeError("bad"), "an answer that is not Key Vault's", Passing.AT_ONCE),
        (MalformedAnswerError("it is about another version"), "an answer that is not Key Vault's", Passing.NO),
        (ClientAuthenticationError("no answer"), "an answer that is not Key Vault's", Passing.AT_ONCE),
        (FileNotFoundError("x"), "an answer that is not Key Vault's", Passing.NO),
    ],
)
def test_whatever_the_sdk_raises_is_explained(error: Exception, told: str, passing: Passing) -> None:
    trouble = explain(error)
    assert told in str(trouble.error)
    assert trouble.passing is passing


def test_a_name_that_does_not_resolve_is_told_with_private_endpoints() -> None:
    assert "private endpoint" in (explain(connection(socket.gaierror(-2, "unknown"))).error.remediation or "")


def test_a_proxy_that_refuses_is_told_apart_from_the_vault() -> None:
    inner = aiohttp.ClientHttpProxyError(Mock(), (), status=407, message=SECRET)
    for error in (ServiceRequestError(inner, error=inner), ServiceResponseError(inner, error=inner)):
        assert "behind a proxy that answered 407" in explain(error).error.reason


def test_what_an_identity_says_is_told_with_the_vault() -> None:
    error = AzureIdentityError("Entra ID says AADSTS700024", "Start the pod anew.", found="iss", retry_after=3.0)
    told = explain(error).error
    assert (told.reason, told.remediation) == (
        f"no token for {VAULT}: Entra ID says AADSTS700024",
        "Start the pod anew.",
    )
    assert (told.found, told.retry_after) == ("iss", 3.0)


@given(
    st.sampled_from([ValueError, AzureError, RuntimeError, KeyError, RecursionError, UnicodeError, OSError]),
    st.text(max_size=40),
)
def test_any_exception_is_explained(kind: type[Exception], text: str) -> None:
    """With a sentence of ours: the text is somebody else's."""
    trouble = explain_any(kind(f"{SECRET}{text}"), vault=VAULT, asked="secret release")
    assert SECRET not in str(trouble.error)

"""What goes wrong with Key Vault, in the words of errors.py: every exception of the SDK, with what to do about it.

Rules:
- Total: whatever is raised has an explanation. The SDK raises more than its own AzureError: ValueError for a challenge
  that names another resource, JSONDecodeError for a page of a proxy.
- Texts of servers and exceptions are not passed on, only the codes and the missing permission found in them: nobody
  vouches for what else they hold.
- What may pass is told apart from what will not, so that the caller knows whether to try at once again.

What does not belong here: asking and trying again (key_vault_client.py), Entra ID (azure/). Imports the SDK, so it is
imported where it is used.
Source: Azure Key Vault REST API "Authentication, requests and responses"; azure-core 1.41.
"""

from __future__ import annotations

import re
import socket
from typing import Any, Final

import aiohttp
from azure.core.exceptions import (
    AzureError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceRequestTimeoutError,
    ServiceResponseError,
    ServiceResponseTimeoutError,
)

from provider.azure.explanations import UNREACHABLE, AzureIdentityError
from provider.egress import EgressRefusedError, connection_problem
from provider.errors import Undecided
from provider.key_management.key_vault_access import DISABLED_CODES, Passing, Trouble
from provider.lifetimes import retry_after_seconds

_ACTION: Final = re.compile(r"Action: '(Microsoft\.KeyVault/[A-Za-z/]{1,100})'")
_INNER_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_IDENTITY: Final = "Check the pod's workload identity, as docs/azure.md shows."
_TENANT: Final = "Set tenantID to the tenant of the vault, and clientID to an identity of that tenant."
_FORBIDDEN_REMEDIES: Final = {
    "ForbiddenByRbac": (
        "Grant the identity the role Key Vault Secrets User on the vault, or on the secret of the certificate's name; "
        "for keys the role Key Vault Crypto User. A new grant takes some minutes to count."
    ),
    "AccessDenied": "Give the identity the permissions get and list on secrets (for keys: on keys) in the vault's "
    "access policy.",
    "ForbiddenByFirewall": "Let the cluster's outbound addresses, or a private endpoint, through the vault's firewall.",
    "ForbiddenByConnection": "The vault allows private links only: give the cluster a private endpoint to it.",
}


class ForeignHostError(Exception):
    """The vault's answer leads to another host, which is not followed. Carries the host's name."""


class MalformedAnswerError(Exception):
    """An answer that is not about what was asked, or lacks what decides. Says which of the two."""


def explain(error: BaseException, *, vault: str, asked: str) -> Trouble:
    """Explain whatever an operation raised.

    Args:
        error: the exception.
        vault: host of the vault.
        asked: what was asked for, such as `certificate wabbit`.
    """
    asked = f"asked for {asked}"
    if isinstance(error, AzureIdentityError):
        return _trouble(
            f"no token for {vault}: {error.reason}",
            error.remediation or _IDENTITY,
            found=error.found,
            retry_after=error.retry_after,
        )
    if isinstance(error, ForeignHostError):
        return _trouble(
            f"{vault} leads to another host, which is not followed, {asked}",
            _WRONG_SERVER,
            found=str(error),
        )
    if isinstance(error, TimeoutError | ServiceRequestTimeoutError | ServiceResponseTimeoutError):
        return _trouble(f"{vault} did not answer in time, {asked}", UNREACHABLE, passing=Passing.AT_ONCE)
    if isinstance(error, ServiceRequestError) or _is_proxys(error):
        return _explain_connection(getattr(error, "inner_exception", None) or error, vault, asked)
    if isinstance(error, IncompleteReadError | ServiceResponseError):
        return _trouble(
            f"{vault} cut its answer short, or made it too large, {asked}", UNREACHABLE, passing=Passing.AT_ONCE
        )
    if isinstance(error, HttpResponseError) and (error.status_code or 0) >= 300:
        return _explain_status(error, vault, asked)
    if isinstance(error, ValueError) and "challenge" in str(error):
        return _trouble(
            f"{vault} wants a token for another service than Key Vault, and gets none",
            "Check vaultURI: it must be the vault's own name, https://<name>.vault.azure.net.",
        )
    return _trouble(
        f"{vault} gave an answer that is not Key Vault's, {asked}",
        _WRONG_SERVER,
        found=str(error) if isinstance(error, MalformedAnswerError) else type(error).__name__,
        passing=Passing.AT_ONCE if isinstance(error, AzureError) else Passing.NO,
    )


_WRONG_SERVER: Final = "Check vaultURI, and what stands between the cluster and the vault."
_MISSING: Final = (
    "Check name and version. A deleted certificate can be recovered for some time: az keyvault certificate recover."
)
_NAME: Final = "Check vaultURI, that the vault was not deleted, and the DNS zone of a private endpoint."


def _trouble(
    reason: str,
    remediation: str,
    *,
    found: str | None = None,
    passing: Passing = Passing.NO,
    retry_after: float | None = None,
    status: int = 0,
    code: str = "",
) -> Trouble:
    error = Undecided("KEYS_UNAVAILABLE", reason, found=found, remediation=remediation, retry_after=retry_after)
    return Trouble(error, passing, status, code)


def _explain_status(error: HttpResponseError, vault: str, asked: str) -> Trouble:
    """An answer that is not 200."""
    status, (code, message) = error.status_code or 0, _codes(error)
    reason, remediation = _describe(status, code, message, asked)
    wait = retry_after_seconds(getattr(error.response, "headers", None) or {}) if status in (429, 503) else None
    passing = Passing.WITH_A_NEW_TOKEN if status == 401 else Passing.NO
    if (status >= 500 or status == 408) and wait is None:
        passing = Passing.AT_ONCE
    found = f"{status} {code}".strip()
    return _trouble(
        f"{vault} {reason}", remediation, found=found, passing=passing, retry_after=wait, status=status, code=code
    )


def _describe(status: int, code: str, message: str, asked: str) -> tuple[str, str]:
    """What an answer means, and what to do about it."""
    if status == 401:
        return f"refuses the token, {asked}", _TENANT
    if status == 403 and code in DISABLED_CODES:
        return f"says that it is disabled, {asked}", "Enable the version in the vault, or name another."
    if status == 403:
        action = _ACTION.search(message)
        lacks = f" (it lacks {action[1]})" if action else ""
        remedies = _FORBIDDEN_REMEDIES
        return f"does not let the identity in{lacks}, {asked}", remedies.get(code, remedies["ForbiddenByRbac"])
    if status == 404:
        return f"has no such thing, {asked}", _MISSING
    if status == 429:
        return f"limits the request rate, {asked}", "It passes. Raise refreshInterval if it recurs."
    if 300 <= status < 400:
        return f"leads elsewhere, which is not followed, {asked}", _WRONG_SERVER
    return f"failed, {asked}", "It mostly passes. If it recurs, look at the vault's health and the code found."


def _codes(error: HttpResponseError) -> tuple[str, str]:
    """Key Vault's code, the inner one if there is one, and its message; empty when there are none."""
    described: Any = error.error
    inner = getattr(described, "innererror", None)
    code = inner.get("code") if isinstance(inner, dict) else None
    code = code or getattr(described, "code", None)
    message = getattr(described, "message", None)
    if not isinstance(code, str) or _INNER_CODE.fullmatch(code) is None:
        code = ""
    return code, message if isinstance(message, str) else ""


def _is_proxys(error: BaseException) -> bool:
    """The proxy answered, not the vault."""
    return isinstance(getattr(error, "inner_exception", None), aiohttp.ClientHttpProxyError)


def _explain_connection(error: BaseException, vault: str, asked: str) -> Trouble:
    """A connection that could not be made, or broke."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _trouble(f"{vault} is behind a proxy that answered {error.status} to CONNECT, {asked}", UNREACHABLE)
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError):
        refused = isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, EgressRefusedError)
        lasting = refused or isinstance(error, aiohttp.ClientConnectorCertificateError)
        return _trouble(
            f"{vault} {connection_problem(error)}, {asked}",
            _NAME if isinstance(getattr(error, "os_error", None), socket.gaierror) else UNREACHABLE,
            passing=Passing.NO if lasting else Passing.AT_ONCE,
        )
    return _trouble(f"{vault} closed the connection, {asked}", UNREACHABLE, passing=Passing.AT_ONCE)

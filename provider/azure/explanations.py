"""What the exceptions of the Azure SDK mean to a person: Entra ID's error codes, and everything else that goes wrong.

Rules:
- Total: the SDK lets through whatever its parsers and connections raise, and each of these gets a sentence.
- A server's own text is not passed on, because it may hold what the server was sent; its codes and ids are.

What does not belong here: asking (identity.py), errors of Key Vault (key_management/).
Sources: Microsoft Entra "authentication error codes"; azure-identity 1.27, azure-core 1.41; attack N11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import aiohttp

from provider.azure.sdk import Answered
from provider.egress import EgressRefusedError, connection_problem
from provider.lifetimes import retry_after_seconds

NO_WEBHOOK: Final = (
    'Label the pods azure.workload.identity/use: "true" (the chart does, with azureWorkloadIdentity.clientId), see '
    "that the cluster has workload identity enabled, and start them anew. Pods in kube-system are left out."
)
UNREACHABLE: Final = (
    "Let the pod reach it: egress rules, DNS, the proxy that HTTPS_PROXY names. A proxy that ends TLS needs its CA in "
    "the file that SSL_CERT_FILE names."
)
FEDERATION_CODES: Final = frozenset({70021, 700211, 700212, 700213, 700024, 700027})  # about the federated token

_CODE = re.compile(r"AADSTS([0-9]{4,9})\b")
_CORRELATION = re.compile(r"Correlation ID: ([0-9a-fA-F-]{36})\b")
_ERROR = re.compile(r"\(([a-z_]{1,64})\)")


class AzureIdentityError(Exception):
    """There is no token.

    Attributes:
        reason: why, one sentence.
        remediation: what to do, None where there is nothing particular.
        found: what the service account's token says of itself, where that explains the refusal.
        retry_after: seconds that Azure asks to be left alone for.
    """

    def __init__(
        self, reason: str, remediation: str | None = None, *, found: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remediation = remediation
        self.found = found
        self.retry_after = retry_after


class _Entry(NamedTuple):
    reason: str
    remediation: str


_FEDERATION: Final = (
    "Give the identity a federated credential for issuer, subject and audience of the service account's token: "
    "az identity federated-credential create, as docs/azure.md shows. A new one takes some minutes to count."
)
_CODES: Final[Mapping[int, _Entry]] = {
    70021: _Entry("no federated credential of the identity matches the service account", _FEDERATION),
    700211: _Entry("no federated credential of the identity has the cluster's issuer", _FEDERATION),
    700213: _Entry("no federated credential of the identity has the service account as its subject", _FEDERATION),
    700212: _Entry(
        "no federated credential of the identity has the audience of the service account's token",
        f"{_FEDERATION} With an identity binding the token is for the cluster's token proxy: see that the pod has "
        "AZURE_KUBERNETES_TOKEN_PROXY.",
    ),
    700024: _Entry(
        "the service account's token is not within its time",
        "kubelet renews it: see that it can, and that the clocks of the node are right. Start the pod anew.",
    ),
    700027: _Entry("the signature of the service account's token does not verify", _FEDERATION),
    700016: _Entry(
        "the tenant has no identity of this client id",
        "Compare clientID and the tenant with az identity show --query '{client:clientId,tenant:tenantId}'.",
    ),
    90002: _Entry("there is no such tenant", "Compare the tenant id with az identity show --query tenantId."),
    90061: _Entry(
        "Entra ID cannot reach the issuer of the cluster",
        "See that az aks show --query oidcIssuerProfile.issuerUrl is what the federated credential names, and that "
        "anybody can read what is there.",
    ),
    1002012: _Entry("the scope that was asked for is none", "Report it with the correlation id."),
    7000112: _Entry("the application of the identity is disabled", "Enable it, or use another identity."),
    53003: _Entry(
        "a conditional access policy blocks the identity", "Except the identity, or the place it calls from."
    ),
    500011: _Entry(
        "the tenant does not know the resource",
        "See that the registry or vault is in the cloud that AZURE_AUTHORITY_HOST names.",
    ),
}
_UNKNOWN_CODE: Final = _Entry("the identity is refused", "Look the code up at https://login.microsoftonline.com/error.")


def explain(error: Exception, asked: str, answered: Answered | None = None) -> AzureIdentityError:
    """What an exception of azure-identity or azure-core means.

    Args:
        error: whatever the SDK let through.
        asked: who was asked, such as "Entra ID at login.microsoftonline.com".
        answered: what the answer was, if there was one.
    """
    response = getattr(error, "response", None)
    if response is not None:
        answered = Answered(int(response.status_code), response.headers)
    code = entra_code(error)
    if code is not None:
        entry = _CODES.get(code, _UNKNOWN_CODE)
        correlation = _CORRELATION.search(_message(error))
        trace = f", correlation id {correlation[1]}" if correlation else ""
        wait = None if answered is None else retry_after_seconds(answered.headers)
        return AzureIdentityError(
            f"{asked} says AADSTS{code}{trace}: {entry.reason}", entry.remediation, retry_after=wait
        )
    if isinstance(error, TimeoutError) or answered is None:
        return _explain_connection(error, asked)
    return _explain_status(error, asked, answered)


def entra_code(error: Exception) -> int | None:
    """The number of the AADSTS code that an exception holds, None without one."""
    match = _CODE.search(_message(error))
    return None if match is None else int(match[1])


def _message(error: Exception) -> str:
    return str(getattr(error, "message", ""))


def _explain_status(error: Exception, asked: str, answered: Answered) -> AzureIdentityError:
    status, wait = answered.status, retry_after_seconds(answered.headers)
    cause = error.__cause__
    if status == 400 and _is_unavailable(error):
        return AzureIdentityError(
            f"{asked} knows no such identity on this node",
            "Assign the identity to the node pool's scale set, or compare clientID with az identity show. A workload "
            "identity needs no node: use azureWorkloadIdentity.",
        )
    if status == 429:
        return AzureIdentityError(f"{asked} limits the request rate (429)", retry_after=wait)
    if status < 400:
        return AzureIdentityError(f"{asked} answered {status} without a token that can be read")
    named = _ERROR.search(_message(error)) or _ERROR.search(_message(cause) if isinstance(cause, Exception) else "")
    return AzureIdentityError(f"{asked} answered {status}{f' ({named[1]})' if named else ''}", retry_after=wait)


def _is_unavailable(error: Exception) -> bool:
    from azure.identity import CredentialUnavailableError

    return isinstance(error, CredentialUnavailableError)


def _explain_connection(error: Exception, asked: str) -> AzureIdentityError:
    from azure.core.exceptions import AzureError

    if _is_unavailable(error) and isinstance(error.__cause__, Exception):
        # The SDK says that a managed identity is not available whatever happened; its cause says what.
        known = _explain_connection(error.__cause__, asked)
        known.remediation = (
            "It answers on nodes of Azure only, at 169.254.169.254, and a NetworkPolicy may forbid it. On AKS use "
            "azureWorkloadIdentity."
        )
        return known
    if isinstance(error, EgressRefusedError):
        kind = error.kind.name.lower().replace("_", "-")
        return AzureIdentityError(f"{asked} is an address of the class {kind}, which is not connected to")
    cause = getattr(error, "inner_exception", None)
    if isinstance(cause, (aiohttp.ClientConnectorError, aiohttp.ClientConnectorCertificateError)):
        return AzureIdentityError(f"{asked} {connection_problem(cause)}", UNREACHABLE)
    if isinstance(cause, aiohttp.ClientHttpProxyError):
        return AzureIdentityError(f"{asked} is behind a proxy that answered {cause.status} to CONNECT", UNREACHABLE)
    if isinstance(error, TimeoutError) or isinstance(cause, TimeoutError):
        return AzureIdentityError(f"{asked} did not answer in time", UNREACHABLE)
    if isinstance(error, AzureError) and isinstance(cause, aiohttp.ClientError):
        return AzureIdentityError(f"{asked} closed the connection, or answered what cannot be read", UNREACHABLE)
    return AzureIdentityError(f"{asked} gave an answer that makes no sense ({type(error).__name__})")

"""Every fault that Key Vault and Entra ID are known for, switched on while images are verified.

What is asked each time: are the verdicts right, is nothing admitted that should not be, does an admission ever wait for
Azure, does a secret show up anywhere (the fixture `azure` looks).
"""

from __future__ import annotations

import base64
import json

import pytest
import trustme

from provider.errors import Undecided
from provider.key_management.key_vault_objects import VaultObject
from provider.key_management.key_vault_versions import VersionFacts
from tests.simulators.azure import vault_rig
from tests.simulators.azure.entra import TENANT
from tests.simulators.azure.key_vault import (
    PEM,
    RESOURCE,
    KeyVaultSimulator,
    pem_secret,
)
from tests.simulators.azure.vault_rig import (
    NO_KEYS,
    RIGHT,
    SIGNER,
    VERSION,
    Azure,
    Images,
    load,
    rows,
)
from tests.simulators.listener import (
    Fault,
    body,
    delay,
    endless,
    gzipped,
    hang,
    raw,
    reset,
    status,
    trickle,
    truncate,
)

azure, images = vault_rig.azure, vault_rig.images  # fixtures

JSON = {"Content-Type": "application/json"}


def refusal(code: int, error: str, inner: str | None = None, headers: dict[str, str] | None = None) -> Fault:
    content = {"error": {"code": error, "message": "no", "innererror": {"code": inner} if inner else None}}
    return status(code, body=json.dumps(content).encode(), headers={**JSON, **(headers or {})})


def challenge(tenant: str = TENANT, resource: str = RESOURCE) -> dict[str, str]:
    authority = f"https://login.microsoftonline.com/{tenant}"
    return {"WWW-Authenticate": f'Bearer authorization="{authority}", resource="{resource}"'}


EXPIRED_TOKEN = refusal(401, "Unauthorized", headers=challenge())
FAULTS: dict[str, tuple[Fault, str]] = {
    "401 again and again": (EXPIRED_TOKEN, "refuses the token"),
    "403 by role": (refusal(403, "Forbidden", "ForbiddenByRbac"), "403 ForbiddenByRbac"),
    "403 by access policy": (refusal(403, "Forbidden", "AccessDenied"), "403 AccessDenied"),
    "403 by firewall": (refusal(403, "Forbidden", "ForbiddenByFirewall"), "403 ForbiddenByFirewall"),
    "404": (refusal(404, "SecretNotFound"), "has no such thing"),
    "429 with a wait": (refusal(429, "Throttled", headers={"Retry-After": "5"}), "limits the request rate"),
    "429 with an hour's wait": (refusal(429, "Throttled", headers={"Retry-After": "3600"}), "limits the request rate"),
    "429 without a wait": (refusal(429, "Throttled"), "limits the request rate"),
    "500": (refusal(500, "InternalServerError"), "500 InternalServerError"),
    "503": (status(503), "503"),
    "never an answer": (hang(), "did not answer in time"),
    "too slow": (delay(5), "did not answer in time"),
    "byte by byte": (trickle(0.05), "did not answer in time"),
    "a broken connection": (reset(), "contoso.vault.azure.net"),
    "a truncated answer": (truncate(20), "cut its answer short"),
    "an answer without an end": (endless(b" " * 65536), "cut its answer short"),
    "a compressed answer": (gzipped(), "cut its answer short"),
    "no HTTP": (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "contoso.vault.azure.net"),
    "a page of a proxy": (
        status(200, body=b"<html>sign in</html>", headers={"Content-Type": "text/html"}),
        "an answer that is not Key Vault's",
    ),
    "bad JSON": (body(b'{"value": '), "an answer that is not Key Vault's"),
    "JSON of another kind": (body(b"[]"), "an answer that is not Key Vault's"),
    "nothing in it": (body(b"{}"), "an answer that is not Key Vault's"),
    "no attributes": (
        body(json.dumps({"id": f"https://contoso.vault.azure.net/secrets/release/{VERSION}", "value": "x"}).encode()),
        "does not say whether",
    ),
    "attributes of another kind": (
        body(
            json.dumps(
                {
                    "id": f"https://contoso.vault.azure.net/secrets/release/{VERSION}",
                    "attributes": {"enabled": "yes", "created": "yesterday"},
                    "value": [],
                }
            ).encode()
        ),
        "an answer that is not Key Vault's",
    ),
    "a value of another kind": (
        body(
            json.dumps(
                {
                    "id": f"https://contoso.vault.azure.net/secrets/release/{VERSION}",
                    "attributes": {"enabled": True},
                    "value": ["x"],
                }
            ).encode()
        ),
        "is not that of a certificate",
    ),
    "another secret": (
        body(
            json.dumps(
                {
                    "id": f"https://contoso.vault.azure.net/secrets/other/{VERSION}",
                    "attributes": {"enabled": True},
                    "value": "x",
                }
            ).encode()
        ),
        "it is about something else",
    ),
    "another vault's secret": (
        body(
            json.dumps(
                {
                    "id": f"https://evil.vault.azure.net/secrets/release/{VERSION}",
                    "attributes": {"enabled": True},
                    "value": "x",
                }
            ).encode()
        ),
        "it is about something else",
    ),
    "a redirect to another host": (
        status(302, headers={"Location": "https://evil.vault.azure.net/secrets/release/"}),
        "leads elsewhere, which is not followed",
    ),
    "a challenge for another service": (
        status(401, headers=challenge(resource="https://management.azure.com")),
        "wants a token for another service",
    ),
    "a challenge of another tenant": (
        status(401, headers=challenge("99999999-7777-8888-9999-000000000000")),
        "belongs to another tenant",
    ),
    "a challenge of no kind": (status(401, headers={"WWW-Authenticate": "Negotiate"}), "contoso.vault.azure.net"),
    "no challenge": (status(401), "contoso.vault.azure.net"),
}
SLOW = {"never an answer", "too slow", "byte by byte", "an answer without an end"}


@pytest.mark.parametrize("name", FAULTS)
async def test_n53_a_vault_with_a_fault_costs_nothing_that_was_loaded(azure: Azure, images: Images, name: str) -> None:
    """Loaded before, faulty now: the last good certificates stay, and the fault is told with what to do."""
    fault, told = FAULTS[name]
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    provider = azure.provider(VaultObject("release", history=0), call_seconds=0.2 if name in SLOW else 5.0)
    await azure.refresh(provider) if name not in SLOW else await load(azure, provider)
    images.use(provider)
    azure.vault.fault("/secrets/*", fault)
    assert told in await azure.refresh(provider)
    assert told in rows(provider)[0]["Error"]
    assert await images.verdicts() == RIGHT
    azure.vault.heal()
    await load(azure, provider)
    assert "Error" not in rows(provider)[0]
    assert azure.hosts.strangers == []


@pytest.mark.parametrize("name", FAULTS)
async def test_n10_n11_a_vault_with_a_fault_from_the_beginning_admits_nothing(
    azure: Azure, images: Images, name: str
) -> None:
    """Nothing is loaded: what is signed and what is not trusted cannot be told apart, and neither is admitted."""
    fault, told = FAULTS[name]
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    azure.vault.fault("/secrets/*", fault)
    provider = azure.provider(VaultObject("release", history=0), call_seconds=0.2 if name in SLOW else 5.0)
    images.use(provider)
    assert told in await azure.refresh(provider)
    assert await images.verdicts() == NO_KEYS
    assert azure.hosts.strangers == []
    azure.vault.heal()
    await load(azure, provider)
    assert await images.verdicts() == RIGHT


@pytest.mark.parametrize(
    ("fault", "times"),
    [(refusal(500, "InternalServerError"), 1), (reset(), 1), (truncate(20), 1), (EXPIRED_TOKEN, 2), (status(503), 1)],
    ids=["500", "reset", "truncated", "401 twice", "503"],
)
async def test_what_passes_at_once_is_not_even_told(azure: Azure, fault: Fault, times: int) -> None:
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    provider = azure.provider()
    azure.vault.fault("/secrets/release/*", fault, times=times)
    await provider.refresh()
    assert provider.material().certificates


async def test_a_token_that_was_revoked_is_replaced_by_a_new_one(azure: Azure) -> None:
    """The SDK would show the old one again until it ends, up to a day later."""
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    provider = azure.provider()
    await provider.refresh()
    azure.entra.revoke()
    await provider.refresh()
    assert len(azure.entra.minted) == 2


async def test_an_event_that_ends_a_token_leads_to_a_new_one(azure: Azure) -> None:
    """Continuous access evaluation: the vault wants a token from after some event, such as a changed network."""
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    provider = azure.provider()
    await provider.refresh()
    claims = base64.b64encode(b'{"access_token":{"nbf":{"essential":true,"value":"1699815453"}}}').decode()
    demand = (
        'Bearer realm="", authorization_uri="https://login.microsoftonline.com/common/oauth2/authorize", '
        f'error="insufficient_claims", claims="{claims}"'
    )
    azure.vault.fault("/secrets/*", status(401, headers={"WWW-Authenticate": demand}), times=1)
    await provider.refresh()
    assert len(azure.entra.minted) == 2


def test_an_answer_with_a_secret_is_not_shown_by_accident() -> None:
    from provider.key_management.key_vault_client import SecretAnswer

    assert repr(SecretAnswer(VersionFacts(VERSION), "hunter2", PEM)) == f"SecretAnswer('{VERSION}')"


async def test_many_objects_share_one_token_and_one_renewal(azure: Azure) -> None:
    names = [f"certificate-{number}" for number in range(20)]
    for name in names:
        azure.vault.add_certificate(name, pem_secret(SIGNER.chain))
    provider = azure.provider(*map(VaultObject, names))
    await provider.refresh()
    assert len(azure.entra.minted) == 1
    azure.entra.revoke()
    await provider.refresh()
    assert len(azure.entra.minted) == 2
    assert azure.vault.most_at_once <= 4


async def test_a_wait_that_key_vault_asks_for_is_handed_on(azure: Azure) -> None:
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    azure.vault.fault("/secrets/*", refusal(429, "Throttled", headers={"Retry-After": "3600"}))
    with pytest.raises(Undecided) as caught:
        await azure.provider().refresh()
    assert caught.value.retry_after == 3600.0
    assert len(azure.vault.requests) == 1


def entra_refusal(azure: Azure, code: int) -> Fault:
    made = azure.entra.refuse(code, "refused.", {})
    return status(made.status, body=made.body, headers=made.headers)


@pytest.mark.parametrize(
    ("code", "told"),
    [(70021, "no federated credential"), (700024, "not within its time"), (90061, "cannot reach the issuer")],
)
async def test_what_entra_says_is_told_in_words(azure: Azure, images: Images, code: int, told: str) -> None:
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    azure.entra.fault("/*/oauth2/v2.0/token", entra_refusal(azure, code))
    provider = azure.provider()
    error = await azure.refresh(provider)
    assert f"AADSTS{code}" in error
    assert told in error
    images.use(provider)
    assert await images.verdicts() == NO_KEYS
    azure.entra.heal()
    await provider.refresh()
    assert await images.verdicts() == RIGHT


@pytest.mark.parametrize("fault", [status(429), status(503), hang(), body(b"<html>"), reset()])
async def test_entra_may_fail_in_any_way(azure: Azure, images: Images, fault: Fault) -> None:
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    azure.entra.fault("*", fault)
    provider = azure.provider(call_seconds=0.3)
    assert "no token" in (error := await azure.refresh(provider)) or "did not answer in time" in error
    images.use(provider)
    assert await images.verdicts() == NO_KEYS


async def test_a_missing_service_account_token_is_told_with_the_label_of_the_pod(azure: Azure) -> None:
    (azure.folder / "token").unlink()
    await azure.refresh(azure.provider())
    assert "azure.workload.identity/use" in azure.told[0]


async def test_a_name_without_a_server_and_a_server_of_another_name_get_no_token(azure: Azure) -> None:
    """A stranger's certificate ends it before anything is asked."""
    stranger = trustme.CA()
    async with KeyVaultSimulator(azure.entra, tls=stranger) as false:
        azure.hosts.add(azure.vault.vault_host, false)
        assert "has a TLS certificate that is not trusted" in await azure.refresh(azure.provider())
        assert false.requests == []
    assert azure.entra.requests == []


async def test_n10_a_link_to_another_host_is_not_followed(azure: Azure) -> None:
    """Not even to one that the same name space holds: a token would go along."""
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    azure.vault.changes = lambda page: {**page, "nextLink": "https://evil.vault.azure.net/secrets/release/versions?x=1"}
    assert "leads to another host" in await azure.refresh(azure.provider())
    assert azure.hosts.strangers == []


async def test_certificates_that_were_deleted_stay_for_a_time_and_are_missed(azure: Azure, images: Images) -> None:
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    provider = azure.provider()
    await provider.refresh()
    azure.vault.delete("release")
    assert "has no such thing" in await azure.refresh(provider)
    images.use(provider)
    assert await images.verdicts() == RIGHT

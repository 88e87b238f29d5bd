"""Registries and token services that want credentials, or break what they are asked for."""

from __future__ import annotations

import json

import pytest

from tests.hostile.faults import bomb, flood
from tests.hostile.site import Site
from tests.simulators.listener import Fault, body, hang, status
from tests.simulators.registry import TokenIssuer, TokenServiceSimulator

pytestmark = pytest.mark.asyncio(loop_scope="module")


def token(**members: object) -> Fault:
    """A token service's answer."""
    return status(200, body=json.dumps(members).encode(), headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
async def test_n01_a_realm_of_the_attackers_gets_no_credentials(site: Site, scheme: str) -> None:
    registry = site.registry()
    key, _ = site.image(registry)
    async with TokenServiceSimulator(TokenIssuer(accounts={}, anonymous=True), host="localhost") as attacker:
        site.bystanders.append(attacker)
        registry.auth, registry.accounts = "bearer", {}
        registry.challenge = f'{scheme} realm="{attacker.url}/token",service="x",scope="repository:app:pull"'
        await site.denied(key, "REGISTRY_UNAUTHORIZED")
        site.bystanders.remove(attacker)


@pytest.mark.parametrize(
    ("fault", "codes"),
    [
        (token(token="a" * 1024 * 1024), ["REGISTRY_PROTOCOL"]),
        (token(token="a" * 200_000), ["REGISTRY_PROTOCOL"]),
        (token(token="a\r\nX-Evil: 1"), ["REGISTRY_PROTOCOL"]),
        (token(token=["a"]), ["REGISTRY_PROTOCOL"]),
        (token(token=""), ["REGISTRY_PROTOCOL"]),
        (token(token="a", expires_in=-1), ["REGISTRY_UNAUTHORIZED"]),
        (token(token="a", expires_in=10**400), ["REGISTRY_PROTOCOL"]),
        (body(b'{"token":' + b"[" * 100_000), ["REGISTRY_PROTOCOL"]),
        (body(b'{"token":"a","token":"b"}'), ["REGISTRY_PROTOCOL"]),
        (body(b"\xff\xfe"), ["REGISTRY_PROTOCOL"]),
        (bomb(), ["REGISTRY_PROTOCOL"]),
        (flood(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 65536), ["REGISTRY_PROTOCOL"]),
        (status(307, headers={"Location": "http://169.254.169.254/token"}), ["REGISTRY_PROTOCOL"]),
        (hang(), ["DEADLINE_EXCEEDED"]),
    ],
    ids=[
        *(
            "a token of 1 MiB",
            "a token of 200 kB",
            "a header in the token",
            "a list",
            "empty",
            "ends before",
            "for ever",
        ),
        *("deep", "twice", "no text", "bomb", "no end", "redirect", "no answer"),
    ],
)
async def test_n15_a_token_service_that_answers_nonsense(site: Site, fault: Fault, codes: list[str]) -> None:
    registry = site.registry()
    key, _ = site.image(registry)
    registry.auth = "bearer"
    registry.fault("/token", fault)
    await site.denied(key, *codes)


@pytest.mark.parametrize(
    "challenge",
    [
        "Bearer " + 'realm="' + "a" * 7000,
        "Bearer " * 1000,
        'Bearer realm="x' + "\\" * 4000 + '"',
        "Negotiate",
        'Bearer realm="gopher://127.0.0.1/"',
        'Bearer realm="http://user:password@127.0.0.1/"',
        'Digest realm="x",nonce="y"',
    ],
    ids=["unclosed", "many", "escapes", "unknown", "gopher", "userinfo", "digest"],
)
async def test_n01_a_challenge_that_is_none(site: Site, challenge: str) -> None:
    registry = site.registry()
    key, _ = site.image(registry)
    registry.auth, registry.challenge = "bearer", challenge
    await site.denied(key, "REGISTRY_UNAUTHORIZED", "REGISTRY_PROTOCOL")

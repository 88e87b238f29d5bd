"""Guarded connections and proxies, over real sockets: where nobody gets to, and by which way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
import trustme
from aiohttp import web

from provider.egress import (
    LOOPBACK_ALLOWED,
    PRIVATE_ALLOWED,
    PUBLIC_ONLY,
    EgressRefusedError,
    EgressRules,
    ProxySettings,
    guarded_connector,
    tls_context,
)
from provider.errors import Undecided
from provider.floods import MAX_HEADS, MAX_WIRE_BYTES
from provider.oci import Reference
from provider.stores.oras import OrasStore
from tests.simulators.listener import Listener, RecordedRequest, Reply, raw
from tests.simulators.registry import RegistrySimulator
from tests.simulators.stores import QUICK, oras_store

NAME = "team/app"


class Greeter(Listener):
    async def reply(self, request: web.Request) -> Reply:
        return Reply(200, {}, b"hello")


class ProxySimulator(Listener):
    """An HTTP proxy for plain HTTP that has one registry behind it, whatever host it is asked for."""

    def __init__(self, registry: RegistrySimulator) -> None:
        super().__init__()
        self._registry = registry

    async def reply(self, request: web.Request) -> Reply:
        seen = self.requests[-1]
        path = "/" + seen.path.split("/", 3)[3] if "://" in seen.path else seen.path
        self._registry.requests.append(
            RecordedRequest(seen.method, path, seen.query, seen.headers, seen.body, seen.client_certificate)
        )
        return await self._registry.reply(request)


@asynccontextmanager
async def session(rules: EgressRules, authority: trustme.CA | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    tls = tls_context(ca_pem=authority.cert_pem.bytes()) if authority else None
    async with aiohttp.ClientSession(connector=guarded_connector(rules, tls=tls)) as client:
        yield client


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_n03_neither_a_literal_nor_a_name_leads_to_a_loopback_address(host: str) -> None:
    """A name is judged by what DNS says at the time, so that it cannot change its mind (DNS rebinding)."""
    async with Greeter(host=host) as server:
        for rules in (PUBLIC_ONLY, PRIVATE_ALLOWED):
            async with session(rules) as client:
                with pytest.raises(aiohttp.ClientConnectorError) as caught:
                    await client.get(server.url)
                assert isinstance(caught.value.os_error, EgressRefusedError)
        assert server.requests == []
        async with session(LOOPBACK_ALLOWED) as client, client.get(server.url) as answer:
            assert await answer.read() == b"hello"


async def test_a_guarded_connection_checks_certificates_and_names() -> None:
    authority = trustme.CA()
    async with Greeter(tls=authority) as server:
        async with session(LOOPBACK_ALLOWED, authority) as client, client.get(server.url) as answer:
            assert answer.status == 200
        async with session(LOOPBACK_ALLOWED) as client:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await client.get(server.url)


class TestProxies:
    @pytest.fixture
    async def registry(self) -> AsyncIterator[RegistrySimulator]:
        async with RegistrySimulator() as simulator:
            yield simulator

    @pytest.fixture
    async def proxy(self, registry: RegistrySimulator) -> AsyncIterator[ProxySimulator]:
        async with ProxySimulator(registry) as simulator:
            yield simulator

    @staticmethod
    def through(proxy: Listener, bypass: str = "") -> ProxySettings:
        address = f"http://someone:proxy-secret@{proxy.host}"
        return ProxySettings.from_environment({"HTTP_PROXY": address, "HTTPS_PROXY": address, "NO_PROXY": bypass})

    async def test_a_registry_is_reached_through_the_proxy_with_its_own_credentials(
        self, registry: RegistrySimulator, proxy: ProxySimulator
    ) -> None:
        image = registry.push_image(NAME, tag="v1")
        settings = replace(QUICK, plain_http=True)
        async with oras_store(settings=settings, proxies=self.through(proxy)) as store:
            subject = await store.resolve(Reference.parse(f"registry.example.test/{NAME}:v1"))
        assert subject.digest == image.digest
        [request] = proxy.requests
        assert request.path == f"http://registry.example.test/v2/{NAME}/manifests/v1"
        assert request.headers["Proxy-Authorization"].startswith("Basic ")

    async def test_what_no_proxy_names_is_reached_directly(
        self, registry: RegistrySimulator, proxy: ProxySimulator
    ) -> None:
        registry.push_image(NAME, tag="v1")
        async with oras_store(registry, proxies=self.through(proxy, bypass="127.0.0.0/8")) as store:
            await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
        assert proxy.requests == []
        assert len(registry.requests) == 1

    async def test_a_proxy_that_refuses_a_tunnel_leaves_things_undecided_and_its_password_unsaid(
        self, proxy: ProxySimulator
    ) -> None:
        async with oras_store(proxies=self.through(proxy)) as store:
            with pytest.raises(Undecided, match=r"REGISTRY_UNAVAILABLE.*proxy that answered 4") as caught:
                await store.resolve(Reference.parse(f"registry.example.test/{NAME}:v1"))
        assert "proxy-secret" not in repr(caught.value) + str(caught.value)

    async def test_n03_a_proxy_is_no_way_around_the_rules_for_literal_addresses(
        self, registry: RegistrySimulator, proxy: ProxySimulator
    ) -> None:
        image = registry.push_image(NAME, tag="v1")
        registry.auth = "bearer"
        registry.realm = "http://10.0.0.1/token"
        settings = replace(QUICK, plain_http=True)
        store = OrasStore("store", settings, proxies=self.through(proxy))
        try:
            with pytest.raises(Undecided, match=r"REGISTRY_PROTOCOL.*private"):
                await store.resolve(Reference.parse(f"registry.example.test/{NAME}:{image.digest.hex[:8]}"))
            with pytest.raises(Undecided, match=r"REGISTRY_PROTOCOL.*link-local"):
                await store.resolve(Reference.parse(f"169.254.169.254/{NAME}:v1"))
        finally:
            await store.aclose()
        assert len(proxy.requests) == 1


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
FINAL = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


async def test_n22_informational_answers_are_borne_to_a_limit() -> None:
    async with Greeter() as server, session(LOOPBACK_ALLOWED) as client:
        server.fault("/few", raw(CONTINUE * (MAX_HEADS - 1) + FINAL))
        server.fault("/many", raw(CONTINUE * MAX_HEADS + FINAL))
        assert await (await client.get(server.url / "few")).text() == "hello"
        with pytest.raises(aiohttp.ClientResponseError, match="no end"):
            await client.get(server.url / "many")
        assert await (await client.get(server.url)).text() == "hello"


async def test_n22_answers_that_nobody_asked_for_are_no_answers_to_the_next_request() -> None:
    async with Greeter() as server, session(LOOPBACK_ALLOWED) as client:
        server.fault("/two", raw(FINAL + FINAL.replace(b"hello", b"devil")))
        assert await (await client.get(server.url / "two")).text() == "hello"
        assert await (await client.get(server.url)).text() == "hello"


async def test_n15_an_answer_has_an_end_whatever_it_is_made_of() -> None:
    async with Greeter() as server, session(LOOPBACK_ALLOWED) as client:
        server.fault("*", raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"a" * MAX_WIRE_BYTES))
        answer = await client.get(server.url)
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()

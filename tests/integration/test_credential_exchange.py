"""One exchange with a service that gives credentials: limits, second tries, proxies, and what a failure says."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from yarl import URL

from provider.credentials.exchange import MAX_ANSWER_BYTES, USER_AGENT, ExchangeFailedError, Exchanges
from provider.egress import LOOPBACK_ALLOWED, METADATA_ONLY, PRIVATE_ALLOWED, PUBLIC_ONLY, EgressRules, ProxySettings
from tests.simulators.azure.hosts import Hosts
from tests.simulators.listener import Fault, Listener, Reply, body, endless, gzipped, hang, raw, reset, status, truncate


class Service(Listener):
    async def reply(self, request: web.Request) -> Reply:
        return Reply(200, {"Content-Type": "application/json"}, b'{"token": "1"}')


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with Service() as running:
        yield running


@pytest.fixture
async def exchanges() -> AsyncIterator[Exchanges]:
    sender = Exchanges(attempt_seconds=2.0)
    yield sender
    await sender.aclose()


async def problem(exchanges: Exchanges, url: URL, rules: EgressRules = LOOPBACK_ALLOWED) -> ExchangeFailedError:
    """What is said of a failure."""
    with pytest.raises(ExchangeFailedError) as caught:
        await exchanges.send("POST", url, rules=rules, form={"secret": "hunter2-password"})
    assert "hunter2" not in f"{caught.value}{caught.value!r}"
    return caught.value


def lead(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let every name have this address, as DNS could."""

    def answer(host: str, port: int, *_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


async def test_a_form_or_a_body_is_posted_and_the_answer_read(service: Service, exchanges: Exchanges) -> None:
    answer = await exchanges.send("POST", service.url / "a", rules=LOOPBACK_ALLOWED, form={"a": "1&2"})
    assert (answer.status, answer.document()) == (200, {"token": "1"})
    await exchanges.send("POST", service.url / "b", rules=LOOPBACK_ALLOWED, data=b"{}", headers={"X-A": "1"})
    first, second = service.requests
    assert (first.body, second.body, second.headers["X-A"]) == (b"a=1%262", b"{}", "1")
    assert first.headers["User-Agent"] == USER_AGENT
    assert first.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("fault", "words", "tries"),
    [
        (status(500), "answered 500", 2),
        (status(503, headers={"Retry-After": "5"}), "answered 503", 1),
        (status(429), "limits the request rate (429)", 1),
        (reset(), "closed the connection", 2),
        (truncate(3), "closed the connection", 2),
        (raw(b"SSH-2.0-OpenSSH\r\n\r\n"), "not HTTP", 1),
        (gzipped(), "compressed its answer", 1),
        (body(b"x" * (MAX_ANSWER_BYTES + 1)), "more than", 1),
        (endless(), "more than", 1),
    ],
)
async def test_what_may_pass_is_tried_once_more_and_what_will_not_is_not(
    service: Service, exchanges: Exchanges, fault: Fault, words: str, tries: int
) -> None:
    service.fault("*", fault)
    assert words in (await problem(exchanges, service.url)).problem
    assert len(service.requests) == tries


@pytest.mark.parametrize("code", [429, 503])
async def test_the_wait_that_is_asked_for_is_told(service: Service, exchanges: Exchanges, code: int) -> None:
    service.fault("*", status(code, headers={"Retry-After": "17"}))
    assert (await problem(exchanges, service.url)).retry_after == 17.0


async def test_the_second_try_may_do_better(service: Service, exchanges: Exchanges) -> None:
    service.fault("*", reset(), times=1)
    assert (await exchanges.send("POST", service.url, rules=LOOPBACK_ALLOWED)).status == 200


async def test_a_service_that_never_answers_is_given_up(service: Service) -> None:
    service.fault("*", hang())
    exchanges = Exchanges(attempt_seconds=0.1)
    assert "did not answer in time" in (await problem(exchanges, service.url)).problem
    assert len(service.requests) == 2
    await exchanges.aclose()


async def test_redirects_are_not_followed(service: Service, exchanges: Exchanges) -> None:
    service.fault("*", status(302, headers={"Location": str(service.url / "elsewhere")}))
    assert (await exchanges.send("GET", service.url / "here", rules=LOOPBACK_ALLOWED)).status == 302
    assert service.lines == ["GET /here"]


@pytest.mark.parametrize("rules", [PUBLIC_ONLY, PRIVATE_ALLOWED, METADATA_ONLY])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_an_address_outside_the_rules_is_not_connected_to(
    service: Service, exchanges: Exchanges, rules: EgressRules, host: str
) -> None:
    error = await problem(exchanges, service.url.with_host(host), rules)
    assert "which is not connected to" in error.problem
    assert service.requests == []


async def test_a_name_that_leads_to_an_address_outside_the_rules_is_not_connected_to(
    service: Service, exchanges: Exchanges, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead(monkeypatch, "127.0.0.1")
    error = await problem(exchanges, service.url.with_host("sts.example.com"), PRIVATE_ALLOWED)
    assert "of the class loopback, which is not connected to" in error.problem
    assert service.requests == []


async def test_nobody_there_and_no_such_name_are_told_apart(exchanges: Exchanges) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    assert "connection refused" in (await problem(exchanges, URL(f"http://127.0.0.1:{port}"))).problem
    assert "cannot be found in DNS" in (await problem(exchanges, URL("http://nowhere.invalid"))).problem
    assert (await problem(exchanges, URL(f"http://{'a' * 64}.example"))).problem


class TestThroughAProxy:
    async def test_a_certificate_of_a_stranger_is_not_believed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        authority = trustme.CA()
        async with (
            Service(tls=authority, names=("sts.example.com",)) as service,
            Hosts({"sts.example.com": service}, trustme.CA(), tmp_path) as hosts,
        ):
            hosts.apply(monkeypatch)
            exchanges = Exchanges(ProxySettings.from_environment(hosts.variables))
            error = await problem(exchanges, URL("https://sts.example.com/"), PRIVATE_ALLOWED)
            assert "certificate that is not trusted" in error.problem
            assert service.requests == []
            await exchanges.aclose()

    async def test_a_proxy_that_refuses_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with Hosts({}, trustme.CA(), tmp_path) as hosts:
            exchanges = Exchanges(ProxySettings.from_environment(hosts.variables))
            error = await problem(exchanges, URL("https://sts.example.com/"), PRIVATE_ALLOWED)
            assert "behind a proxy that answered 403" in error.problem
            await exchanges.aclose()

    async def test_the_metadata_service_is_never_asked_through_one(
        self, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rules of its kind, for a name that leads to loopback: the genuine address is left alone, it may be there."""
        lead(monkeypatch, "127.0.0.1")
        rules = EgressRules(LOOPBACK_ALLOWED.allowed, metadata_service=True)
        async with Hosts({}, trustme.CA(), tmp_path) as hosts:
            exchanges = Exchanges(ProxySettings.from_environment({"HTTP_PROXY": hosts.proxy}))
            url = service.url.with_host("metadata.example.com")
            assert (await exchanges.send("GET", url, rules=rules)).status == 200
            assert hosts.connections == []
            await exchanges.aclose()

"""Fetching revocation data over real loopback connections: what is asked of whom, how often, and what hostile servers
can do. The client is the product's own; only the server is made up."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
from yarl import URL

from provider.egress import Proxy, ProxySettings
from provider.errors import Refused, Undecided
from provider.notation.crl import CrlQuery
from provider.notation.revocation import (
    Answer,
    ChainRevocation,
    ChainStatus,
    FetchFailure,
    Inquiry,
    Purpose,
    ServerOutcome,
    check_chain,
)
from provider.progress import Step
from provider.verifiers.revocation_fetcher import HUGE_CRL_BYTES, LARGE_CRL_BYTES, RevocationFetcher, RevocationSettings
from tests.simulators.revocation import Fault, RevocationServer
from tests.simulators.revocation_data import NOW, TOMORROW, YESTERDAY, Entity, entry, extension

ROOT = Entity.root()
PATIENT = 30.0  # seconds; for what must not time out however busy the machine is
HASTY = 0.2  # seconds; for what must time out


class Clock:
    """Seconds since the epoch that a test moves."""

    def __init__(self) -> None:
        self.now = NOW.timestamp()

    def __call__(self) -> float:
        return self.now

    def move(self, **duration: float) -> None:
        self.now += timedelta(**duration).total_seconds()


def settings(**options: Any) -> RevocationSettings:
    """Loopback allowed, and time limits that a busy machine keeps."""
    return RevocationSettings(
        **{
            "allow_private_addresses": True,
            "allowed_hosts": frozenset({"127.0.0.1"}),
            "ocsp_timeout_seconds": PATIENT,
            "crl_timeout_seconds": PATIENT,
            **options,
        }
    )


@pytest.fixture
async def server() -> AsyncIterator[RevocationServer]:
    async with RevocationServer() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Fetchers:
    """Makes fetchers that are closed in the end."""

    def __init__(self, clock: Clock) -> None:
        self.made: list[RevocationFetcher] = []
        self._clock = clock

    def __call__(self, proxies: ProxySettings | None = None, **options: Any) -> RevocationFetcher:
        fetcher = RevocationFetcher(settings(**options), proxies, clock=self._clock)
        self.made.append(fetcher)
        return fetcher


@pytest.fixture
async def fetchers(clock: Clock) -> AsyncIterator[Fetchers]:
    made = Fetchers(clock)
    yield made
    for fetcher in made.made:
        await fetcher.aclose()


def chain_check(entity: Entity, at_offset: timedelta = timedelta()) -> Inquiry[ChainRevocation]:
    return check_chain(entity.chain, purpose=Purpose.CODE_SIGNING, at=NOW + at_offset, signing_time=None)


def ocsp_leaf(server: RevocationServer, path: str = "/ocsp", **response: Any) -> Entity:
    """A leaf whose responder is published under the path."""
    leaf = ROOT.issue("leaf", ocsp=[server.url(path)])
    server.publish(path, ROOT.ocsp(leaf.certificate, **response))
    return leaf


def crl_leaf(server: RevocationServer, path: str = "/crl", *entries: bytes, **options: Any) -> Entity:
    """A leaf whose CRL is published under the path."""
    server.publish(path, ROOT.crl(*entries, **options))
    return ROOT.issue("leaf", crl=[server.url(path)])


class TestExchanges:
    async def test_a_responder_is_asked_by_get_and_only_once_while_its_answer_holds(
        self, server: RevocationServer, fetchers: Fetchers, clock: Clock
    ) -> None:
        fetcher = fetchers(refresh_seconds=None)
        leaf = ocsp_leaf(server)
        for _ in range(3):
            assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.OK
        (asked,) = server.log
        assert (asked.method, asked.path) == ("GET", "/ocsp")
        assert len(asked.request) > 60
        assert asked.headers["user-agent"].startswith("countersign/")
        clock.move(days=1)
        server.publish("/ocsp", ROOT.ocsp(leaf.certificate, says="revoked", next_update=TOMORROW + timedelta(days=1)))
        found = await fetcher.run(chain_check(leaf, timedelta(days=1)))
        assert (found.status, len(server.log)) == (ChainStatus.REVOKED, 2)

    async def test_a_request_that_is_too_long_for_get_is_posted(
        self, server: RevocationServer, fetchers: Fetchers
    ) -> None:
        leaf = ocsp_leaf(server, "/ocsp?any")
        assert (await fetchers().run(chain_check(leaf))).status is ChainStatus.OK
        (asked,) = server.log
        assert (asked.method, asked.headers["content-type"]) == ("POST", "application/ocsp-request")
        assert len(asked.request) > 60

    async def test_a_list_is_fetched_once_for_all_certificates_of_its_issuer(
        self, server: RevocationServer, fetchers: Fetchers
    ) -> None:
        fetcher = fetchers()
        revoked = crl_leaf(server)
        good = crl_leaf(server, "/crl", entry(revoked.certificate.serial))
        assert (await fetcher.run(chain_check(revoked))).status is ChainStatus.REVOKED
        assert (await fetcher.run(chain_check(good))).status is ChainStatus.OK
        assert server.asked == ["/crl"]

    @pytest.mark.parametrize("size", [LARGE_CRL_BYTES, HUGE_CRL_BYTES])
    async def test_large_lists_are_read_in_the_thread_and_judged_alike(
        self, server: RevocationServer, fetchers: Fetchers, size: int
    ) -> None:
        fetcher = fetchers()
        padding = [extension("1.2.3.4", bytes(size))]
        leaf = ROOT.issue("leaf", crl=[server.url("/crl")])
        server.publish("/crl", ROOT.crl(entry(leaf.certificate.serial), extensions=padding))
        assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.REVOKED
        stranger = Entity.root()
        forged = ROOT.issue("leaf", crl=[server.url("/forged")])
        server.publish("/forged", stranger.crl(issuer=ROOT.certificate, extensions=padding))
        assert "not signed by" in (await fetcher.run(chain_check(forged))).reason
        garbage = ROOT.issue("leaf", crl=[server.url("/garbage")])
        server.publish("/garbage", bytes(size))
        found = await fetcher.run(chain_check(garbage))
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, False)

    async def test_a_delta_is_fetched_and_kept_with_its_list(
        self, server: RevocationServer, fetchers: Fetchers
    ) -> None:
        fetcher = fetchers()
        leaf = crl_leaf(server, freshest=[server.url("/delta")])
        server.publish("/delta", ROOT.crl(number=11, delta_to=10))
        for _ in range(2):
            assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.OK
        assert server.asked == ["/crl", "/delta"]

    async def test_the_servers_of_a_chain_are_asked_at_the_same_time(
        self, server: RevocationServer, fetchers: Fetchers
    ) -> None:
        ca = ROOT.issue("CA", authority=True, crl=[server.url("/root")])
        leaf = ca.issue("leaf", crl=[server.url("/ca")])
        server.publish("/root", ROOT.crl())
        server.publish("/ca", ca.crl())
        gate = asyncio.Event()
        server.gates = {"/root": gate, "/ca": gate}
        running = asyncio.create_task(fetchers().run(chain_check(leaf)))
        await server.wait_for(2)  # neither was answered yet
        gate.set()
        assert (await running).status is ChainStatus.OK

    async def test_a_generator_that_asks_nothing_needs_no_network(self, fetchers: Fetchers) -> None:
        assert (await fetchers().run(chain_check(ROOT.issue("leaf")))).status is ChainStatus.OK

    async def test_errors_of_the_generator_come_through(self, fetchers: Fetchers) -> None:
        leaf = ROOT.issue("leaf", usages=["key_encipherment"])
        with pytest.raises(Refused, match="CERTIFICATE_CHAIN_INVALID"):
            await fetchers().run(chain_check(leaf))


class TestFaults:
    @pytest.mark.parametrize(
        ("method", "fault"),
        [
            (method, fault)
            for method in ("ocsp", "crl")
            for fault in Fault
            if fault is not Fault.COMPRESSED  # its own test
            and (method, fault) != ("crl", Fault.ENDLESS)  # 32 MiB for the code that the OCSP case runs
        ],
    )
    async def test_n46_no_fault_of_a_server_passes_and_none_takes_longer_than_allowed(
        self, server: RevocationServer, fetchers: Fetchers, fault: Fault, method: str
    ) -> None:
        waits = fault in (Fault.SILENT, Fault.STALLED)
        limit = HASTY if waits else PATIENT
        fetcher = fetchers(ocsp_timeout_seconds=limit, crl_timeout_seconds=limit)
        leaf = ocsp_leaf(server, "/x") if method == "ocsp" else crl_leaf(server, "/x")
        server.faults["/x"] = fault
        server.publish("/elsewhere", ROOT.ocsp(leaf.certificate) if method == "ocsp" else ROOT.crl())
        found = await fetcher.run(chain_check(leaf))
        assert found.status is ChainStatus.UNKNOWN
        assert found.unavailable == (fault not in (Fault.GARBAGE, Fault.OVERSIZE, Fault.ENDLESS))
        assert "/elsewhere" not in server.asked

    async def test_what_claims_to_be_compressed_is_taken_as_it_is(
        self, server: RevocationServer, fetchers: Fetchers
    ) -> None:
        """No decompression, so no bomb: nobody was asked to compress."""
        leaf = ocsp_leaf(server)
        server.faults["/ocsp"] = Fault.COMPRESSED
        assert (await fetchers().run(chain_check(leaf))).status is ChainStatus.OK
        assert server.log[0].headers["accept-encoding"] == "identity"

    async def test_a_port_that_nobody_listens_on_is_no_judgement(self, fetchers: Fetchers) -> None:
        async with RevocationServer() as gone:
            leaf = ocsp_leaf(gone)
        found = await fetchers().run(chain_check(leaf))
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, True)

    @pytest.mark.parametrize("url", ["http://127.0.0.1:99999/", "http://[::::]/", "http://-.-/", "http://a..b/"])
    async def test_an_address_that_is_none_is_not_asked(self, fetchers: Fetchers, url: str) -> None:
        fetcher = fetchers(allowed_hosts=frozenset(), ocsp_timeout_seconds=HASTY)
        leaf = ROOT.issue("leaf", ocsp=[url])
        assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.UNKNOWN

    async def test_a_failed_server_is_left_alone_for_some_seconds(
        self, server: RevocationServer, fetchers: Fetchers, clock: Clock
    ) -> None:
        fetcher = fetchers(failure_seconds=5.0)
        leaf = ocsp_leaf(server)
        server.faults["/ocsp"] = Fault.ERROR
        for _ in range(3):
            assert (await fetcher.run(chain_check(leaf))).unavailable
        assert len(server.log) == 1
        del server.faults["/ocsp"]
        clock.move(seconds=5)
        assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.OK

    async def test_a_failure_need_not_be_remembered(self, server: RevocationServer, fetchers: Fetchers) -> None:
        fetcher = fetchers(failure_seconds=0.0)
        leaf = ocsp_leaf(server)
        server.faults["/ocsp"] = Fault.ERROR
        assert (await fetcher.run(chain_check(leaf))).unavailable
        del server.faults["/ocsp"]
        assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.OK


class TestAddresses:
    @pytest.mark.parametrize(
        "options",
        [
            {"allow_private_addresses": False, "allowed_hosts": frozenset()},
            {"allow_private_addresses": False},
            {"allowed_hosts": frozenset()},
            {"allowed_hosts": frozenset({"crl.test"})},
            {"allowed_hosts": frozenset({"127.0.0.1:1"})},
        ],
    )
    async def test_n09_a_certificate_cannot_make_us_connect_to_loopback(
        self, server: RevocationServer, fetchers: Fetchers, options: dict[str, Any]
    ) -> None:
        leaf = ocsp_leaf(server)
        found = await fetchers(**options).run(chain_check(leaf))
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, False)
        assert "not asked" in found.reason
        assert server.log == []

    @pytest.mark.parametrize(
        "host", ["localhost", "LOCALHOST.", "127.1.2.3", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"]
    )
    async def test_n09_nor_by_another_spelling_of_it(
        self, server: RevocationServer, fetchers: Fetchers, host: str
    ) -> None:
        leaf = ROOT.issue("leaf", crl=[server.url("/crl", host)])
        server.publish("/crl", ROOT.crl())
        options: dict[str, Any] = {"allow_private_addresses": False, "allowed_hosts": frozenset()}
        found = await fetchers(**options, crl_timeout_seconds=2.0).run(chain_check(leaf))
        assert (found.status, server.log) == (ChainStatus.UNKNOWN, [])

    async def test_n09_metadata_services_are_out_of_reach_whatever_is_allowed(self, fetchers: Fetchers) -> None:
        host = "169.254.169.254"
        leaf = ROOT.issue("leaf", crl=[f"http://{host}/latest/meta-data/"])
        found = await fetchers(allowed_hosts=frozenset({host})).run(chain_check(leaf))
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, False)
        assert "link-local" in found.reason

    async def test_a_proxy_of_the_operator_leads_to_hosts_that_are_resolved_there(
        self, server: RevocationServer, fetchers: Fetchers
    ) -> None:
        proxies = ProxySettings(http=Proxy(URL(server.url()), {"Proxy-Authorization": "Basic x"}))
        fetcher = fetchers(proxies, allow_private_addresses=False, allowed_hosts=frozenset())
        server.publish("/crl", ROOT.crl())
        leaf = ROOT.issue("leaf", crl=["http://crl.example.test/crl"])
        assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.OK
        assert (server.log[0].host, server.asked) == ("crl.example.test", ["/crl"])
        internal = ROOT.issue("leaf", crl=["http://10.0.0.1/crl"])
        assert (await fetcher.run(chain_check(internal))).status is ChainStatus.UNKNOWN
        assert len(server.log) == 1


class TestKeeping:
    @pytest.mark.parametrize("bad", [b"garbage", None])
    async def test_an_answer_that_fails_a_check_is_not_kept(
        self, server: RevocationServer, fetchers: Fetchers, bad: bytes | None
    ) -> None:
        fetcher = fetchers()
        leaf = ocsp_leaf(server)
        server.publish("/ocsp", bad or ROOT.ocsp(leaf.certificate, next_update=YESTERDAY))
        assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.UNKNOWN
        server.publish("/ocsp", ROOT.ocsp(leaf.certificate))
        assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.OK
        assert len(server.log) == 2

    async def test_a_list_that_fails_a_check_is_not_kept(self, server: RevocationServer, fetchers: Fetchers) -> None:
        fetcher = fetchers()
        leaf = crl_leaf(server, next_update=YESTERDAY)
        assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.UNKNOWN
        server.publish("/crl", ROOT.crl())
        assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.OK

    async def test_n46_what_a_forger_put_under_an_url_is_never_given_out_for_the_real_issuer(
        self, server: RevocationServer, fetchers: Fetchers
    ) -> None:
        fetcher = fetchers()
        forger = Entity.root()
        theirs = forger.issue("leaf", crl=[server.url("/crl")])
        server.publish("/crl", forger.crl())
        assert (await fetcher.run(chain_check(theirs))).status is ChainStatus.OK
        ours = crl_leaf(server)
        server.publish("/crl", ROOT.crl(entry(ours.certificate.serial)))
        assert (await fetcher.run(chain_check(ours))).status is ChainStatus.REVOKED

    async def test_a_revocation_is_noticed_when_the_kept_answer_is_refreshed(
        self, server: RevocationServer, fetchers: Fetchers, clock: Clock
    ) -> None:
        fetcher = fetchers(refresh_seconds=60.0)
        leaf = ocsp_leaf(server)
        assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.OK
        server.publish("/ocsp", ROOT.ocsp(leaf.certificate, says="revoked"))
        clock.move(seconds=59)
        assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.OK
        clock.move(seconds=1)
        for _ in range(2):
            assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.REVOKED
        assert len(server.log) == 2

    async def test_the_kept_answer_serves_while_the_server_is_down(
        self, server: RevocationServer, fetchers: Fetchers, clock: Clock
    ) -> None:
        fetcher = fetchers(refresh_seconds=60.0)
        leaf = crl_leaf(server)
        assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.OK
        server.faults["/crl"] = Fault.ERROR
        clock.move(seconds=60)
        for _ in range(2):
            assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.OK
        assert len(server.log) == 2
        clock.move(days=1)
        assert (await fetcher.run(chain_check(leaf, timedelta(days=1)))).unavailable

    async def test_what_is_kept_and_when_the_first_of_it_ends_is_shown(
        self, server: RevocationServer, fetchers: Fetchers, clock: Clock
    ) -> None:
        fetcher = fetchers(refresh_seconds=60.0)
        assert fetcher.first_end() is None
        ends = [NOW + timedelta(hours=hours) for hours in (9, 3, 5)]
        for number, end in enumerate(ends):
            leaf = crl_leaf(server, f"/crl{number}", next_update=end)
            assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.OK
        assert (await fetcher.run(chain_check(ocsp_leaf(server)))).status is ChainStatus.OK
        assert fetcher.first_end() == ends[1].timestamp()
        shown = {figure.labels: figure.value for figure in fetcher.figures() if figure.name.endswith("entries")}
        assert shown == {("ocsp",): 1, ("crl",): 3}
        clock.move(hours=4)
        assert fetcher.first_end() == ends[2].timestamp()
        clock.move(hours=6)
        assert fetcher.first_end() is None

    async def test_no_more_is_kept_than_allowed(self, server: RevocationServer, fetchers: Fetchers) -> None:
        fetcher = fetchers(max_crl_bytes=1000)
        leaf = crl_leaf(server)
        for _ in range(2):
            assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.OK
        assert len(server.log) == 2

    async def test_n48_nothing_is_written_to_disk(self, server: RevocationServer, fetchers: Fetchers) -> None:
        leaf = crl_leaf(server, extensions=[extension("1.2.3.4", bytes(LARGE_CRL_BYTES))])
        fetcher = fetchers()
        with _WATCH:
            for _ in range(2):
                assert (await fetcher.run(chain_check(leaf))).status is ChainStatus.OK
        assert _WATCH.written == []


class _DiskWatch:
    """Notes files opened for writing. Audit hooks cannot be taken off again, so this one is switched on and off."""

    def __init__(self) -> None:
        self.written: list[object] = []
        self._on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._on and event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            self.written.append(arguments[0])

    def __enter__(self) -> None:
        self.written.clear()
        self._on = True

    def __exit__(self, *_: object) -> None:
        self._on = False


_WATCH = _DiskWatch()


class TestSharing:
    async def test_many_who_want_the_same_cause_one_request(self, server: RevocationServer, fetchers: Fetchers) -> None:
        fetcher = fetchers()
        leaf = crl_leaf(server)
        gate = server.gates["/crl"] = asyncio.Event()
        running = [asyncio.create_task(fetcher.run(chain_check(leaf))) for _ in range(20)]
        await server.wait_for(1)
        gate.set()
        assert {found.status for found in await asyncio.gather(*running)} == {ChainStatus.OK}
        assert len(server.log) == 1

    @pytest.mark.parametrize(
        ("make", "path", "what"), [(ocsp_leaf, "/ocsp", "the OCSP answer"), (crl_leaf, "/crl", "the CRL")]
    )
    async def test_who_waits_is_told_which_responder_keeps_it_waiting(
        self, server: RevocationServer, fetchers: Fetchers, make: Callable[..., Entity], path: str, what: str
    ) -> None:
        gate = server.gates[path] = asyncio.Event()
        requests = [Step(), Step()]
        fetcher = fetchers()
        leaf = make(server)
        running = [request.task(fetcher.run(chain_check(leaf))) for request in requests]
        await server.wait_for(1)
        for request in requests:
            assert request.describe().startswith(f"{what} of 127.0.0.1:{server.port} (")
            (waited_for,) = request.leaves()
            assert waited_for.host.startswith("http://")  # no registry is called that
        gate.set()
        await asyncio.gather(*running)

    async def test_n68_the_first_who_wanted_it_gives_up_and_the_others_get_it(
        self, server: RevocationServer, fetchers: Fetchers
    ) -> None:
        fetcher = fetchers()
        leaf = ocsp_leaf(server)
        gate = server.gates["/ocsp"] = asyncio.Event()
        first = asyncio.create_task(fetcher.run(chain_check(leaf)))
        await server.wait_for(1)
        second = asyncio.create_task(fetcher.run(chain_check(leaf)))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.set()
        assert (await second).status is ChainStatus.OK
        assert len(server.log) == 1

    async def test_who_gives_up_leaves_no_generator_behind(self, server: RevocationServer, fetchers: Fetchers) -> None:
        ended: list[str] = []

        def inquiry() -> Inquiry[None]:
            try:
                yield (CrlQuery(server.url("/crl"), ROOT.certificate),)
            finally:
                ended.append("closed")

        server.gates["/crl"] = asyncio.Event()
        running = asyncio.create_task(fetchers().run(inquiry()))
        await server.wait_for(1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert ended == ["closed"]
        server.gates["/crl"].set()

    async def test_closing_ends_what_is_under_way_without_a_verdict(
        self, server: RevocationServer, fetchers: Fetchers
    ) -> None:
        fetcher = fetchers()
        leaf = crl_leaf(server)
        server.gates["/crl"] = asyncio.Event()
        running = asyncio.create_task(fetcher.run(chain_check(leaf)))
        await server.wait_for(1)
        await fetcher.aclose()
        with pytest.raises(Undecided):
            await running
        server.gates["/crl"].set()


def test_a_failure_tells_whether_asking_again_may_help() -> None:
    assert FetchFailure("down").outcome is ServerOutcome.UNREACHABLE
    answers: dict[str, Answer] = {"x": FetchFailure("too large", ServerOutcome.UNUSABLE)}
    assert answers["x"] != FetchFailure("too large")

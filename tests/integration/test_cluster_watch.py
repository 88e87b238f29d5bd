"""List and watch: whatever an API server does, nothing is lost, nothing invented, and nothing deleted by mistake.

The API server is a simulator on loopback; the client, the assembly and the executor are the real ones.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from provider.configuration import reflector
from provider.configuration.reflector import PAGE
from provider.configuration.resources import KINDS
from tests.integration.replica import (
    AGAIN,
    QUICK,
    UNWATCHED,
    bare,
    deafen,
    events,
    replica,
    stranger,
    watched,
)
from tests.integration.test_tls import until
from tests.simulators.kubernetes import KubernetesSimulator
from tests.simulators.listener import Fault, body, delay, endless, hang, raw, reset, status, truncate
from tests.unit.configuration.objects import one

# -- list and watch ---------------------------------------------------------------------------------------------------


async def test_long_lists_are_read_in_pages(server: KubernetesSimulator) -> None:
    for number in range(3 * PAGE):
        spare = bare(one("KeyManagementProvider"))
        spare["metadata"]["name"] = f"spare-{number}"
        server.apply(spare)
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
        assert len(running.sets[0].key_providers) == 3 * PAGE + 1
    lists = [request for request in server.requests if request.path.endswith("/keymanagementproviders")]
    assert [request.query.get("limit") for request in lists if "limit" in request.query] == [str(PAGE)] * 4


async def test_a_watch_goes_on_where_the_last_one_ended(server: KubernetesSimulator) -> None:
    """From the version that a bookmark told: no list, and nothing that happened in between is lost."""
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
        await watched(server)
        server.bookmark()
        reached = server.object("stores", "store-oras")["metadata"]["resourceVersion"]
        await asyncio.sleep(0.05)
        server.end_watches()
        server.apply(stranger())
        await until(lambda: len(running.sets) > 1)
        assert await running.ask() == "UNTRUSTED_ROOT"
        await watched(server)
    assert server.verbs.count("list stores") == 1
    watches = [
        request.query for request in server.requests if request.path.endswith("/stores") and "watch" in request.query
    ]
    assert int(watches[-1]["resourceVersion"]) > int(reached)
    assert {query["allowWatchBookmarks"] for query in watches} == {"true"}


@pytest.mark.parametrize(
    "gone",
    [
        None,
        status(410),
        body(b'{"type": "ERROR", "object": {"kind": "Status", "metadata": {}, "code": 410, "reason": "Gone"}}\n'),
    ],
    ids=["as the simulator says it", "HTTP status", "event"],
)
async def test_what_is_too_old_to_go_on_from_is_listed_anew(server: KubernetesSimulator, gone: Fault | None) -> None:
    """And what was deleted in the meantime is gone. It is no trouble, so nothing is said of it."""
    with capture_logs() as logs:
        async with replica(server) as running:
            await until(lambda: bool(running.sets))
            await watched(server)
            end = deafen(server, "keymanagementproviders")
            server.delete("keymanagementproviders", "ratify-notation-inline-cert-0")
            server.compact()
            if gone is not None:
                server.spoil("watch", "keymanagementproviders", gone, times=1)
            await asyncio.sleep(1.1)  # or it would be a watch that ends as soon as it begins
            end()
            await until(lambda: not running.sets[-1].key_providers)
            assert await running.ask() == "RESOURCE_UNUSABLE"
            await watched(server)
    assert events(logs, UNWATCHED) == []
    assert server.verbs.count("list keymanagementproviders") == 2


async def test_a_page_that_is_too_old_is_asked_for_anew(server: KubernetesSimulator) -> None:
    """The list took longer than the server remembers."""
    for number in range(2 * PAGE):
        spare = bare(one("KeyManagementProvider"))
        spare["metadata"]["name"] = f"spare-{number}"
        server.apply(spare)
    asked = 0

    async def compact(request: Any, reply: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            server.apply(stranger())
            server.compact()
        return reply

    server.spoil("list", "keymanagementproviders", compact)
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
        assert len(running.sets[0].key_providers) == 2 * PAGE + 1
        assert await running.ask() == "UNTRUSTED_ROOT"
    assert asked > 3


async def test_a_connection_lost_in_the_middle_of_an_event_loses_and_invents_nothing(
    server: KubernetesSimulator,
) -> None:
    """Half a deletion is none, and what comes while nobody listens is seen afterwards."""
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
        await watched(server)
        deletion = {
            "type": "DELETED",
            "object": server.object("keymanagementproviders", "ratify-notation-inline-cert-0"),
        }
        server.say(json.dumps(deletion).encode()[:-1])
        server.break_watches()
        server.apply(stranger())
        await until(lambda: len(running.sets) > 1)
        assert await running.ask() == "UNTRUSTED_ROOT"
    assert all(resources.key_providers for resources in running.sets)


async def test_a_watch_that_says_nothing_is_taken_to_be_dead(server: KubernetesSimulator) -> None:
    """The network dropped the connection without a word. A deletion must not wait for TCP to notice."""
    settings = replace(QUICK, follow=replace(QUICK.follow, idle=0.1))
    async with replica(server, settings=settings) as running:
        await until(lambda: bool(running.sets))
        await watched(server)
        deafen(server, "keymanagementproviders")
        server.delete("keymanagementproviders", "ratify-notation-inline-cert-0")
        await until(lambda: not running.sets[-1].key_providers)


async def test_a_watch_whose_answer_never_begins_is_given_up(server: KubernetesSimulator) -> None:
    settings = replace(QUICK, follow=replace(QUICK.follow, answer=0.3))
    with capture_logs() as logs:
        async with replica(server, settings=settings) as running:
            await until(lambda: bool(running.sets))
            await watched(server)
            server.spoil("watch", "keymanagementproviders", hang(), times=2)
            end = deafen(server, "keymanagementproviders")
            await asyncio.sleep(1.1)  # or it would be a watch that ends as soon as it begins
            end()
            await until(lambda: bool(events(logs, UNWATCHED)))
            server.delete("keymanagementproviders", "ratify-notation-inline-cert-0")
            await until(lambda: not running.sets[-1].key_providers)
    assert ("KeyManagementProvider", "the API server does not answer") in events(logs, UNWATCHED)


NO_LIST = "the API server's answer is no list of resources"
NO_VERSION = "the API server's list of resources has no version"
NO_JSON = "the API server's answer is no JSON object"
LISTS: dict[str, tuple[Fault, str]] = {
    "403": (status(403), "the service account may not list and watch stores of config.ratify.deislabs.io"),
    "404 of a proxy": (
        status(404, body=b"<html>"),
        "the API server answered 404 for stores of config.ratify.deislabs.io",
    ),
    "500": (status(500), "the API server answered 500"),
    "429": (status(429, headers={"Retry-After": "1"}), "the API server answered 429"),
    "redirect": (status(302, headers={"Location": "/healthz"}), "the API server answered 302"),
    "HTML": (body(b"<html>welcome</html>"), NO_JSON),
    "nothing": (body(b""), NO_JSON),
    "null": (body(b"null"), NO_JSON),
    "cut off": (truncate(20), "the API server is out of reach (RemoteProtocolError)"),
    "nested": (body(b'{"items": ' + b"[" * 90_000), NO_JSON),
    "empty object": (body(b"{}"), NO_LIST),
    "items of another kind": (body(b'{"metadata": {"resourceVersion": "9"}, "items": {}}'), NO_LIST),
    "metadata of another kind": (body(b'{"metadata": [], "items": []}'), NO_LIST),
    "no version": (body(b'{"metadata": {}, "items": []}'), NO_VERSION),
    "a number for a version": (body(b'{"metadata": {"resourceVersion": 9}, "items": []}'), NO_VERSION),
    "nameless": (body(b'{"metadata": {"resourceVersion": "9"}, "items": [{}, 5]}'), "an object has no name"),
    "too large": (endless(b" " * 65536), "the API server's answer has more than 100000 bytes"),
    "not HTTP": (raw(b"SSH-2.0-OpenSSH\r\n\r\n"), "the API server is out of reach (RemoteProtocolError)"),
    "reset": (reset(), "the API server is out of reach (RemoteProtocolError)"),
}


@pytest.mark.parametrize(("fault", "reason"), LISTS.values(), ids=LISTS.keys())
async def test_a_list_that_cannot_be_had_deletes_nothing_and_is_asked_for_again(
    server: KubernetesSimulator, monkeypatch: pytest.MonkeyPatch, fault: Fault, reason: str
) -> None:
    """Neither at the start, when nothing decides until it is there, nor later, when what is known stays."""
    monkeypatch.setattr(reflector, "MAX_ANSWER_BYTES", 100_000)
    server.spoil("list", "stores", fault)
    with capture_logs() as logs:
        async with replica(server) as running:
            await until(lambda: bool(events(logs, UNWATCHED)))
            assert running.sets == []
            server.heal()
            await until(lambda: bool(running.sets))
            await watched(server)
            server.bookmark()
            await until(lambda: events(logs, AGAIN) == [("Store", "")])
            server.spoil("list", "stores", fault)
            seen = len(logs)
            server.end_watches({"type": "ERROR", "object": {"metadata": {}, "code": 410}})
            await until(lambda: bool(events(logs[seen:], UNWATCHED)))
            assert await running.ask() == "admitted"
            server.apply(stranger())
            await until(lambda: len(running.sets) > 1)
            assert await running.ask() == "UNTRUSTED_ROOT", "the other kinds go on"
            server.heal()
            await watched(server)
            server.bookmark()
            await until(lambda: len(events(logs, AGAIN)) > 1)
    assert set(events(logs, UNWATCHED)) == {("Store", reason)}
    assert len(events(logs, UNWATCHED)) == 2, "once each time, not once for each try"
    assert "Store/store-oras" in running.labels()


WATCHES: dict[str, tuple[bytes, str]] = {
    "garbage": (b"garbage\n", NO_JSON),
    "a list": (b"[]\n", NO_JSON),
    "no object": (b'{"type": "ADDED"}\n', "an event of a watch has no object"),
    "no metadata": (b'{"type": "ADDED", "object": {"metadata": 5}}\n', "an event of a watch has no object"),
    "nameless": (b'{"type": "DELETED", "object": {"metadata": {}}}\n', "an object has no name"),
    "unknown type": (
        b'{"type": "PURGED", "object": {"metadata": {"name": "store-oras"}}}\n',
        "an event of a watch is of the unknown type PURGED",
    ),
    "no type": (b'{"object": {"metadata": {"name": "s"}}}\n', "an event of a watch is of the unknown type nothing"),
    "error": (
        b'{"type": "ERROR", "object": {"metadata": {}, "code": 500}}\n',
        "a watch ended with the status 500",
    ),
    "error without a code": (
        b'{"type": "ERROR", "object": {"metadata": {}}}\n',
        "a watch ended with the status nothing",
    ),
    "too large": (b"x" * 200_000, "an event of a watch has more than 100000 bytes"),
}


@pytest.mark.parametrize(("said", "reason"), WATCHES.values(), ids=WATCHES.keys())
async def test_a_watch_that_cannot_be_understood_begins_anew_with_a_list(
    server: KubernetesSimulator, monkeypatch: pytest.MonkeyPatch, said: bytes, reason: str
) -> None:
    """It may have been a deletion that was not understood."""
    monkeypatch.setattr(reflector, "MAX_ANSWER_BYTES", 100_000)
    with capture_logs() as logs:
        async with replica(server) as running:
            await until(lambda: bool(running.sets))
            await watched(server)
            server.say(said)
            await until(lambda: len(events(logs, UNWATCHED)) == len(KINDS))
            assert await running.ask() == "admitted"
            server.apply(stranger())
            await until(lambda: len(running.sets) > 1)
            assert await running.ask() == "UNTRUSTED_ROOT"
    assert set(events(logs, UNWATCHED)) == {(kind, reason) for kind in KINDS}


async def test_watches_that_end_as_soon_as_they_begin_do_not_spin(server: KubernetesSimulator) -> None:
    """A proxy that cuts every stream: a pause that grows, and a list each time, so that nothing is missed."""
    server.spoil("watch", "*", body(b""))
    with capture_logs() as logs:
        async with replica(server) as running:
            await until(lambda: len(events(logs, UNWATCHED)) == len(KINDS))
            server.delete("keymanagementproviders", "ratify-notation-inline-cert-0")
            await until(lambda: not running.sets[-1].key_providers)
    assert {reason for _, reason in events(logs, UNWATCHED)} == {"watches end as soon as they begin"}
    assert server.verbs.count("watch stores") < 100


async def test_watches_that_end_after_each_event_pause_before_they_go_on(server: KubernetesSimulator) -> None:
    versions = iter(range(1000, 100_000))

    async def bookmark(request: Any, reply: Any) -> Any:
        event = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(next(versions))}}}
        return replace(reply, body=json.dumps(event).encode() + b"\n")

    server.spoil("watch", "stores", bookmark)
    with capture_logs() as logs:
        async with replica(server):
            await until(lambda: server.verbs.count("watch stores") > 5)
    assert events(logs, UNWATCHED) == []
    assert server.verbs.count("list stores") == 1


async def test_an_object_nested_too_deeply_spoils_nothing_but_itself(server: KubernetesSimulator) -> None:
    """Whoever may write one object must not keep the provider from reading all of its kind."""
    deep: Any = "x"
    for _ in range(200):
        deep = {"a": [deep]}
    mine = bare(one("Store"))
    mine["metadata"]["name"] = "z-deep"
    mine["spec"]["parameters"] = {"registries": deep}
    server.apply(mine)
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
        assert running.unusable() == {"Store/z-deep"}
        assert await running.ask() == "admitted"
        mine["spec"]["parameters"]["registries"] = [deep]
        server.apply(mine)
        await until(lambda: server.status("stores", "z-deep").get("observedGeneration") == 2)
        assert "registries" in server.status("stores", "z-deep")["error"]


async def test_an_api_server_that_is_away_at_the_start_is_waited_for(server: KubernetesSimulator) -> None:
    server.fault("*", reset())
    with capture_logs() as logs:
        async with replica(server) as running:
            await until(lambda: len(events(logs, UNWATCHED)) >= len(KINDS))
            assert await running.ask() == "NOT_READY"
            server.heal()
            await until(lambda: bool(running.sets))
            assert await running.ask() == "admitted"


async def test_an_api_server_that_goes_away_later_changes_nothing(server: KubernetesSimulator) -> None:
    with capture_logs() as logs:
        async with replica(server) as running:
            await until(lambda: bool(running.sets))
            await watched(server)
            server.fault("*", reset())
            server.break_watches()
            await until(lambda: len(events(logs, UNWATCHED)) >= len(KINDS))
            assert await running.ask() == "admitted"
            assert len(running.sets) == 1
            server.apply(stranger())
            server.heal()
            await until(lambda: len(running.sets) == 2)
            assert await running.ask() == "UNTRUSTED_ROOT"
            server.bookmark()
            await until(lambda: len(events(logs, AGAIN)) >= 1)


async def test_a_slow_api_server_is_given_time(server: KubernetesSimulator) -> None:
    server.spoil("list", "*", delay(0.2))
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
    assert server.most_at_once < 30


async def test_a_token_that_was_rotated_is_read_anew(server: KubernetesSimulator, tmp_path: Path) -> None:
    """The kubelet writes a new one every hour."""
    server.token = "first"
    (tmp_path / "token").write_text("first")
    async with replica(server, client=server.client(token_file=str(tmp_path / "token"))) as running:
        await until(lambda: bool(running.sets))
        await watched(server)
        server.token = "second"
        (tmp_path / "token").write_text("second")
        server.apply(stranger())
        server.end_watches({"type": "ERROR", "object": {"metadata": {}, "code": 410}})
        await until(lambda: len(running.sets) > 1)
        await watched(server)
        (tmp_path / "token").unlink()
        server.token = "third"
        with capture_logs() as logs:
            server.end_watches()
            await until(lambda: bool(events(logs, UNWATCHED)))
        (tmp_path / "token").write_text("third")
        await watched(server)


async def test_an_unforeseen_fault_ends_no_watch(server: KubernetesSimulator, tmp_path: Path) -> None:
    """A token file that is no text: nobody thought of it. The provider decides on, and looks again."""
    (tmp_path / "token").write_bytes(b"\xff")
    with capture_logs() as logs:
        async with replica(server, client=server.client(token_file=str(tmp_path / "token"))) as running:
            await until(lambda: any(line["event"] == "watching resources failed unexpectedly" for line in logs))
            (tmp_path / "token").write_text("good")
            await until(lambda: bool(running.sets))
            assert await running.ask() == "admitted"

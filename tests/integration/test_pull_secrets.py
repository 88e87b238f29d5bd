"""Credentials from the cluster: pull secrets and service accounts of an API server, for a registry that wants them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from lightkube import AsyncClient
from structlog.testing import capture_logs

from provider.assembly import Assembler
from provider.credentials.chain import CredentialChain
from provider.credentials.docker_config import MAX_CONFIG_BYTES
from provider.credentials.kubernetes import (
    KEEP_SECONDS,
    KEEP_UNREACHABLE_SECONDS,
    MAX_AT_ONCE,
    REFUSAL_PAUSE_SECONDS,
    PullSecretCredentials,
)
from provider.credentials.pull_secrets import ObjectName
from provider.credentials.renewal import FAILURE_PAUSE_SECONDS
from provider.errors import ConfigurationError, Undecided
from provider.executor import Snapshot
from provider.interfaces import Credential, CredentialProvider
from provider.oci import Descriptor, Reference, Subject
from provider.parts import Environment
from provider.stores.oras import MAX_CREDENTIALS, OrasStore
from provider.stores.tokens import SPURNED_SECONDS
from tests.simulators.kubernetes import KubernetesSimulator
from tests.simulators.listener import Fault, hang, raw, reset, status
from tests.simulators.registry import RegistrySimulator, TokenIssuer, TokenServiceSimulator
from tests.simulators.stores import Clock, Credentials, listed, oras_store, subject_of
from tests.unit.configuration.samples import good, read

HOME = "gatekeeper-system"
NAME = "team/app"
OLD, NEW = "hunter2-password", "correct-horse-password"
MODERN = "kubernetes.io/dockerconfigjson"
PULL = ObjectName(HOME, "pull")


def docker_config(auths: dict[str, tuple[str, str]]) -> bytes:
    """A Docker configuration with a user and password for each key."""
    entries = {
        key: {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}
        for key, (user, password) in auths.items()
    }
    return json.dumps({"auths": entries}).encode()


def problem(code: int) -> Fault:
    """What an API server answers when it cannot help."""
    document = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "no",
        "code": code,
    }
    return status(code, body=json.dumps(document).encode(), headers={"Content-Type": "application/json"})


@dataclass
class World:
    """A cluster, a registry with one image, and a clock that both sides of the provider go by."""

    cluster: KubernetesSimulator
    registry: RegistrySimulator
    client: AsyncClient
    clock: Clock
    image: Descriptor

    def secret(self, name: ObjectName = PULL, *, user: str = "robot", password: str = OLD, key: str = "") -> None:
        """A pull secret for the registry."""
        data = docker_config({key or self.registry.host: (user, password)})
        self.cluster.secret(name.name, name.namespace, {".dockerconfigjson": data}, MODERN)

    def source(self, *secrets: ObjectName, account: ObjectName | None = None, **more: Any) -> PullSecretCredentials:
        return PullSecretCredentials(
            self.client, secrets=secrets, service_account=account, monotonic=self.clock, **more
        )

    @asynccontextmanager
    async def store(self, credentials: CredentialProvider) -> AsyncIterator[OrasStore]:
        async with oras_store(self.registry, credentials=credentials, monotonic=self.clock) as store:
            yield store
        if isinstance(credentials, PullSecretCredentials):
            await credentials.aclose()

    def subject(self, name: str = NAME) -> Subject:
        return subject_of(self.registry, name, self.image)

    @property
    def passwords(self) -> list[str]:
        """What the registry was shown, in order, as user:password."""
        shown = (request.authorization or "none" for request in self.registry.requests)
        return [base64.b64decode(one.removeprefix("Basic ")).decode() if "Basic" in one else one for one in shown]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A registry that knows robot by its old password."""
    async with KubernetesSimulator() as cluster, RegistrySimulator() as registry:
        registry.auth = "basic"
        registry.accounts = {"robot": OLD}
        image = registry.push_image(NAME, tag="v1")
        client = cluster.client()
        yield World(cluster, registry, client, Clock(), image)
        await client.close()


async def settle(world: World, readings: int) -> None:
    """Wait until the API server was asked so often."""
    async with asyncio.timeout(20):
        while len(world.cluster.verbs) < readings:  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)


async def renewed(source: PullSecretCredentials) -> None:
    """Wait until nothing is being read behind the decisions."""
    async with asyncio.timeout(20):
        while source._readings._renewals:  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)


async def unavailable(store: OrasStore, world: World) -> Undecided:
    """Ask for the image; nothing is to be had, and nobody was asked without credentials."""
    with pytest.raises(Undecided) as caught:
        await listed(store, world.subject())
    assert caught.value.code == "CREDENTIALS_UNAVAILABLE"
    assert world.registry.requests == [], "anonymous access is no substitute"
    return caught.value


class TestWhere:
    @pytest.mark.parametrize(
        ("kind", "key"), [(MODERN, ".dockerconfigjson"), ("kubernetes.io/dockercfg", ".dockercfg")]
    )
    async def test_a_named_secret_of_either_type_opens_its_registry(self, world: World, kind: str, key: str) -> None:
        document = json.loads(docker_config({world.registry.host: ("robot", OLD)}))
        data = document if key == ".dockerconfigjson" else document["auths"]
        world.cluster.secret("pull", HOME, {key: json.dumps(data).encode()}, kind)
        async with world.store(world.source(PULL)) as store:
            assert (
                await store.resolve(Reference.parse(f"{world.registry.host}/{NAME}:v1"))
            ).digest == world.image.digest

    async def test_a_secret_of_another_namespace_is_read_there(self, world: World) -> None:
        world.secret(ObjectName("registries", "pull"))
        async with world.store(world.source(ObjectName("registries", "pull"))) as store:
            assert await listed(store, world.subject()) == []
        assert [request.path for request in world.cluster.requests] == ["/api/v1/namespaces/registries/secrets/pull"]

    async def test_the_pull_secrets_of_a_service_account_are_asked_when_no_named_one_covers(self, world: World) -> None:
        world.secret(ObjectName(HOME, "named"), key="elsewhere.test")
        world.secret()
        world.cluster.service_account("robot", HOME, ["other", "pull"])
        world.secret(ObjectName(HOME, "other"), key="other.test")
        source = world.source(ObjectName(HOME, "named"), account=ObjectName(HOME, "robot"))
        async with world.store(source) as store:
            assert await listed(store, world.subject()) == []
        assert world.cluster.verbs == ["get secrets", "get serviceaccounts", "get secrets", "get secrets"]

    async def test_a_service_account_is_not_asked_when_a_named_secret_covers(self, world: World) -> None:
        world.secret()
        async with world.store(world.source(PULL, account=ObjectName(HOME, "absent"))) as store:
            assert await listed(store, world.subject()) == []

    async def test_a_service_account_without_pull_secrets_means_anonymous_access(self, world: World) -> None:
        world.registry.auth = "none"
        world.cluster.service_account("default", HOME)
        async with world.store(world.source(account=ObjectName(HOME, "default"))) as store:
            assert await listed(store, world.subject()) == []
        assert world.passwords == ["none"]

    async def test_the_most_specific_entry_of_all_secrets_wins(self, world: World) -> None:
        names = [ObjectName(HOME, name) for name in ("whole", "team", "exact", "sibling")]
        for name, path in zip(names, ("", "/team", "/team/app", "/team/app-evil"), strict=True):
            world.secret(name, user=name.name, key=f"{world.registry.host}{path}")
        source = world.source(*names)
        host = world.registry.host
        found = {path: await source.credential(host, path) for path in (NAME, "team/other", "x", "team/app-evil")}
        assert {path: one and one.username for path, one in found.items()} == {
            NAME: "exact",
            "team/other": "team",
            "x": "whole",
            "team/app-evil": "sibling",
        }

    async def test_n06_each_registry_sees_its_own_credentials_alone(self, world: World) -> None:
        async with RegistrySimulator(host="localhost") as other:
            other.auth, other.accounts = "basic", {"guest": NEW}
            image = other.push_image(NAME)
            data = docker_config({world.registry.host: ("robot", OLD), other.host: ("guest", NEW)})
            world.cluster.secret("pull", HOME, {".dockerconfigjson": data}, MODERN)
            async with oras_store(world.registry, other, credentials=world.source(PULL)) as store:
                await asyncio.gather(
                    *(listed(store, world.subject()) for _ in range(5)),
                    *(listed(store, subject_of(other, NAME, image)) for _ in range(5)),
                )
            assert {request.authorization for request in other.requests} == {
                None,
                "Basic " + base64.b64encode(f"guest:{NEW}".encode()).decode(),
            }
        assert set(world.passwords) == {"none", f"robot:{OLD}"}

    async def test_n01_a_realm_on_another_host_gets_nothing_of_a_pull_secret(self, world: World) -> None:
        world.secret()
        async with TokenServiceSimulator(TokenIssuer(), host="localhost") as service:
            world.registry.auth, world.registry.realm = "bearer", str(service.url)
            async with world.store(world.source(PULL)) as store:
                with pytest.raises(Undecided, match="not one of its token hosts"):
                    await listed(store, world.subject())
            assert service.requests == []

    async def test_n06_a_tenants_service_account_cannot_lead_to_the_secrets_of_others(self, world: World) -> None:
        """The API server does not look at names in imagePullSecrets, and a slash in one would leave the namespace."""
        world.secret()
        names = [f"../../{HOME}/secrets/pull", f"..%2f..%2f{HOME}%2fsecrets%2fpull"]
        for name in names:
            world.cluster.service_account("default", "team-a", [name])
            async with world.store(world.source(account=ObjectName("team-a", "default"))) as store:
                error = await unavailable(store, world)
            assert "ServiceAccount team-a/default" in error.reason
        assert "get secrets" not in world.cluster.verbs

    async def test_a_public_image_needs_no_secret_that_names_its_registry(self, world: World) -> None:
        world.registry.auth = "none"
        world.secret(key="elsewhere.test")
        async with world.store(world.source(PULL)) as store:
            assert await listed(store, world.subject()) == []
        assert world.passwords == ["none"]


class TestCost:
    async def test_a_warm_decision_asks_the_api_server_nothing(self, world: World) -> None:
        world.secret()
        world.cluster.service_account("default", HOME, ["pull"])
        source = world.source(account=ObjectName(HOME, "default"))
        async with world.store(source) as store:
            for _ in range(5):
                await listed(store, world.subject())
            world.clock.now += KEEP_SECONDS - 1
            await listed(store, world.subject())
            assert world.cluster.verbs == ["get serviceaccounts", "get secrets"]

    async def test_all_who_wait_share_one_reading(self, world: World) -> None:
        world.secret()
        async with world.store(world.source(PULL)) as store:
            await asyncio.gather(*(listed(store, world.subject()) for _ in range(50)))
        assert world.cluster.verbs == ["get secrets"]

    async def test_secrets_are_read_side_by_side(self, world: World) -> None:
        """Each answer waits until both were asked for."""
        world.secret()
        world.secret(ObjectName(HOME, "other"), key="other.test")
        both = asyncio.Event()

        async def wait(request: Any, reply: Any) -> Any:
            if len(world.cluster.requests) == 2:
                both.set()
            await both.wait()
            return reply

        world.cluster.fault("*/secrets/*", wait)
        source = world.source(PULL, ObjectName(HOME, "other"), read_seconds=20)
        assert await source.credential(world.registry.host, NAME)

    async def test_after_a_minute_it_is_read_again_behind_the_decision(self, world: World) -> None:
        world.secret()
        async with world.store(world.source(PULL, read_seconds=60)) as store:
            await listed(store, world.subject())
            world.clock.now += KEEP_SECONDS
            world.cluster.fault("*/secrets/*", hang())
            async with asyncio.timeout(20):
                await listed(store, world.subject())
            await settle(world, 2)

    async def test_a_large_secret_is_read_too(self, world: World) -> None:
        auths = {f"registry-{number}.test": ("user", "password") for number in range(1000)}
        data = docker_config({**auths, world.registry.host: ("robot", OLD)})
        assert len(data) > MAX_AT_ONCE
        world.cluster.secret("pull", HOME, {".dockerconfigjson": data}, MODERN)
        async with world.store(world.source(PULL)) as store:
            assert await listed(store, world.subject()) == []


class TestRotation:
    async def test_a_rotated_secret_is_read_again_and_the_request_sent_once_more(self, world: World) -> None:
        world.secret()
        async with world.store(world.source(PULL)) as store:
            await listed(store, world.subject())
            world.registry.accounts["robot"] = NEW
            world.secret(password=NEW)
            world.clock.now += REFUSAL_PAUSE_SECONDS
            world.registry.requests.clear()
            assert await listed(store, world.subject()) == []
            assert world.passwords == [f"robot:{OLD}", f"robot:{NEW}"]
            assert world.cluster.verbs == ["get secrets"] * 2

    async def test_with_tokens_too(self, world: World) -> None:
        world.registry.auth = "bearer"
        world.registry.issuer = TokenIssuer(accounts={"robot": OLD}, anonymous=False)
        world.secret()
        async with world.store(world.source(PULL)) as store:
            await listed(store, world.subject())
            world.registry.issuer.accounts["robot"] = NEW
            world.registry.issuer.revoke()
            world.secret(password=NEW)
            world.clock.now += REFUSAL_PAUSE_SECONDS
            assert await listed(store, world.subject()) == []
        assert world.cluster.verbs == ["get secrets"] * 2

    async def test_everybody_who_was_refused_at_the_same_time_gets_the_new_one_by_one_reading(
        self, world: World
    ) -> None:
        for number in range(10):
            world.registry.push_image(f"team/app-{number}")
        world.secret()
        async with world.store(world.source(PULL)) as store:
            await listed(store, world.subject())
            world.registry.accounts["robot"] = NEW
            world.secret(password=NEW)
            world.clock.now += REFUSAL_PAUSE_SECONDS
            names = [NAME] * 20 + [f"team/app-{number}" for number in range(10)] * 2
            await asyncio.gather(*(listed(store, world.subject(name)) for name in names))
        assert world.cluster.verbs == ["get secrets"] * 2

    async def test_without_a_refusal_it_is_seen_after_a_minute(self, world: World) -> None:
        world.registry.accounts["robot-2"] = NEW
        world.secret()
        source = world.source(PULL)
        async with world.store(source) as store:
            await listed(store, world.subject())
            world.secret(user="robot-2", password=NEW)
            world.clock.now += KEEP_SECONDS
            await listed(store, world.subject())
            await renewed(source)
            world.registry.requests.clear()
            await listed(store, world.subject())
            assert world.passwords == [f"robot-2:{NEW}"]

    async def test_a_registry_that_is_new_in_a_secret_is_known_when_it_asks(self, world: World) -> None:
        world.secret(key="elsewhere.test")
        async with world.store(world.source(PULL)) as store:
            with pytest.raises(Undecided, match="none are configured"):
                await listed(store, world.subject())
            world.secret()
            world.clock.now += REFUSAL_PAUSE_SECONDS
            assert await listed(store, world.subject()) == []

    async def test_a_secret_that_lags_behind_is_not_read_for_every_refusal(self, world: World) -> None:
        world.secret()
        async with world.store(world.source(PULL)) as store:
            await listed(store, world.subject())
            world.registry.accounts["robot"] = NEW
            for _ in range(10):
                world.clock.now += 1
                world.registry.requests.clear()
                with pytest.raises(Undecided, match="REGISTRY_UNAUTHORIZED"):
                    await listed(store, world.subject())
                assert world.passwords == [f"robot:{OLD}"], "no second try with what was refused, none without"
            assert len(world.cluster.verbs) == 1 + 10 / REFUSAL_PAUSE_SECONDS

    async def test_who_names_images_that_are_refused_delays_nobody_else(self, world: World) -> None:
        """The API server hangs; only who was refused waits for it."""
        world.secret()
        source = world.source(PULL, read_seconds=60)
        host = world.registry.host
        first = await source.credential(host, NAME)
        world.clock.now += REFUSAL_PAUSE_SECONDS
        world.cluster.fault("*/secrets/*", hang())
        source.refused(host, "private/image")
        waiting = asyncio.create_task(source.credential(host, "private/image"))
        await settle(world, 2)
        assert not waiting.done()
        async with asyncio.timeout(20):
            assert await source.credential(host, NAME) == first
        waiting.cancel()
        await source.aclose()


class TestSeveral:
    async def test_of_several_secrets_for_a_registry_each_is_tried_and_the_good_one_remembered(
        self, world: World
    ) -> None:
        names = [ObjectName(HOME, f"pull-{number}") for number in range(3)]
        for name in names[:2]:
            world.secret(name, user=name.name)
        world.secret(names[2])
        async with world.store(world.source(*names)) as store:
            assert await listed(store, world.subject()) == []
            assert world.passwords == ["none", f"pull-0:{OLD}", f"pull-1:{OLD}", f"robot:{OLD}"]
            world.registry.requests.clear()
            assert await listed(store, world.subject()) == []
            assert world.passwords == [f"robot:{OLD}"]

    async def test_what_was_refused_for_one_repository_is_first_for_others(self, world: World) -> None:
        names = [ObjectName(HOME, "one"), ObjectName(HOME, "two")]
        world.secret(names[0], user="stranger")
        world.secret(names[1])
        async with world.store(world.source(*names)) as store:
            await listed(store, world.subject())
            world.registry.accounts["stranger"] = OLD
            world.registry.push_image("team/other")
            world.registry.requests.clear()
            await listed(store, world.subject("team/other"))
            assert world.passwords == [f"stranger:{OLD}"]

    async def test_the_service_accounts_secrets_follow_the_named_ones(self, world: World) -> None:
        world.secret(ObjectName(HOME, "named"), user="stranger")
        world.secret()
        world.cluster.service_account("default", HOME, ["pull"])
        source = world.source(ObjectName(HOME, "named"), account=ObjectName(HOME, "default"))
        async with world.store(source) as store:
            assert await listed(store, world.subject()) == []
        assert world.passwords[1:] == [f"stranger:{OLD}", f"robot:{OLD}"]

    async def test_one_request_shows_a_few_at_most_and_the_next_goes_on_from_there(self, world: World) -> None:
        names = [ObjectName(HOME, f"pull-{number}") for number in range(MAX_CREDENTIALS + 1)]
        for name in names[:-1]:
            world.secret(name, user=name.name)
        world.secret(names[-1])
        async with world.store(world.source(*names)) as store:
            with pytest.raises(Undecided, match="REGISTRY_UNAUTHORIZED"):
                await listed(store, world.subject())
            assert len(world.passwords) == 1 + MAX_CREDENTIALS
            world.registry.requests.clear()
            assert await listed(store, world.subject()) == []
            assert world.passwords == [f"pull-{MAX_CREDENTIALS - 1}:{OLD}", f"robot:{OLD}"]

    async def test_when_all_were_refused_the_first_is_shown_again_for_rights_may_have_been_given(
        self, world: World
    ) -> None:
        names = [ObjectName(HOME, "one"), ObjectName(HOME, "two")]
        world.secret(names[0], user="one")
        world.secret(names[1], user="two")
        async with world.store(world.source(*names)) as store:
            for _ in range(2):
                with pytest.raises(Undecided, match="REGISTRY_UNAUTHORIZED"):
                    await listed(store, world.subject())
            world.registry.accounts["one"] = OLD
            assert await listed(store, world.subject()) == []
            del world.registry.accounts["one"]
            world.registry.accounts["two"] = OLD
            world.clock.now += SPURNED_SECONDS
            assert await listed(store, world.subject()) == []

    async def test_a_list_of_sources_is_asked_in_its_order(self, world: World) -> None:
        world.secret()
        host = world.registry.host
        own = Credentials({host: Credential("own", "x")})
        for sources, users in (([own, world.source(PULL)], ["own", "robot"]), ([world.source(PULL), own], ["robot"])):
            world.registry.requests.clear()
            async with world.store(CredentialChain(sources)) as store:
                assert await listed(store, world.subject()) == []
            assert [shown.partition(":")[0] for shown in world.passwords[1:]] == users


class TestWhatIsWrong:
    @pytest.mark.parametrize(
        ("kind", "data", "told"),
        [
            ("Opaque", {".dockerconfigjson": b"{}"}, "is no pull secret"),
            (MODERN, {"other": b"{}"}, "has nothing under .dockerconfigjson"),
            (MODERN, {".dockerconfigjson": b"garbage " + OLD.encode()}, "holds no Docker configuration"),
            (MODERN, {".dockerconfigjson": b" " * (MAX_CONFIG_BYTES + 10)}, "is too large"),
        ],
    )
    async def test_what_is_no_pull_secret_is_told_by_its_name_and_nobody_asked_without_credentials(
        self, world: World, kind: str, data: dict[str, bytes], told: str
    ) -> None:
        world.cluster.secret("pull", HOME, data, kind)
        async with world.store(world.source(PULL)) as store:
            error = await unavailable(store, world)
        assert f"the Secret {HOME}/pull" in error.reason
        assert told in error.reason
        assert error.remediation
        assert OLD not in str(error)

    async def test_a_secret_that_does_not_exist_is_told_and_seen_soon_after_it_does(self, world: World) -> None:
        async with world.store(world.source(PULL)) as store:
            error = await unavailable(store, world)
            assert error.reason == f"the Secret {HOME}/pull does not exist"
            assert f"--namespace {HOME}" in (error.remediation or "")
            world.secret()
            await unavailable(store, world)
            assert len(world.cluster.verbs) == 1, "the API server is not asked for every image"
            world.clock.now += FAILURE_PAUSE_SECONDS
            assert await listed(store, world.subject()) == []

    @pytest.mark.parametrize("plural", ["secrets", "serviceaccounts"])
    async def test_what_may_not_be_read_is_told_with_the_right_that_lacks(self, world: World, plural: str) -> None:
        world.cluster.service_account("default", HOME, ["pull"])
        world.secret()
        world.cluster.forbid("get", plural)
        async with world.store(world.source(account=ObjectName(HOME, "default"))) as store:
            error = await unavailable(store, world)
        assert "may not be read by the provider's service account" in error.reason
        assert f"get {plural} in the namespace {HOME}" in (error.remediation or "")

    async def test_a_missing_service_account_is_told(self, world: World) -> None:
        async with world.store(world.source(account=ObjectName(HOME, "robot"))) as store:
            assert (await unavailable(store, world)).reason == f"the ServiceAccount {HOME}/robot does not exist"

    async def test_a_secret_that_is_broken_spoils_nothing_while_another_one_will_do(self, world: World) -> None:
        world.secret()
        world.cluster.secret("garbage", HOME, {".dockerconfigjson": b"x"}, MODERN)
        names = [ObjectName(HOME, "absent"), ObjectName(HOME, "garbage"), PULL]
        with capture_logs() as logs:
            async with world.store(world.source(*names)) as store:
                for _ in range(3):
                    assert await listed(store, world.subject()) == []
                    world.clock.now += FAILURE_PAUSE_SECONDS
        told = [(log["event"], log["object"]) for log in logs if log["log_level"] == "warning"]
        assert sorted(told) == [
            ("pull secret cannot be read", f"the Secret {HOME}/absent"),
            ("pull secret cannot be read", f"the Secret {HOME}/garbage"),
        ], "each once, not at every attempt"

    async def test_when_the_others_are_refused_the_broken_one_is_what_is_told(self, world: World) -> None:
        world.secret(user="stranger")
        async with world.store(world.source(PULL, ObjectName(HOME, "absent"))) as store:
            with pytest.raises(Undecided, match=r"CREDENTIALS_UNAVAILABLE.*absent does not exist"):
                await listed(store, world.subject())

    async def test_a_broken_entry_for_the_registry_is_told_without_its_content(self, world: World) -> None:
        data = json.dumps({"auths": {world.registry.host: {"auth": f"{OLD}!"}}}).encode()
        world.cluster.secret("pull", HOME, {".dockerconfigjson": data}, MODERN)
        async with world.store(world.source(PULL)) as store:
            error = await unavailable(store, world)
        assert f"the entry for {world.registry.host} in the Secret {HOME}/pull has an auth that" in error.reason
        assert OLD not in str(error)

    @pytest.mark.parametrize(
        "document",
        [
            b"[]",
            b"{",
            b"{}",
            b'{"data": 5, "imagePullSecrets": 5}',
            b'{"metadata": 7}',
            b'{"metadata": {"name": "pull", "namespace": "other"}}',
            b"\xff",
            b"[" * 100_000,
        ],
    )
    async def test_an_answer_that_is_no_object_is_no_reason_to_go_without(self, world: World, document: bytes) -> None:
        world.cluster.fault("*", status(200, body=document, headers={"Content-Type": "application/json"}))
        for source in (world.source(PULL), world.source(account=ObjectName(HOME, "default"))):
            async with world.store(source) as store:
                assert "cannot be read: the API server gave an" in (await unavailable(store, world)).reason

    async def test_outside_of_a_cluster_it_is_told_so(self, world: World) -> None:
        source = PullSecretCredentials(None, secrets=[PULL])
        async with world.store(source) as store:
            error = await unavailable(store, world)
        assert "not connected to one" in error.reason
        assert "--cluster" in (error.remediation or "")

    async def test_a_secret_that_was_deleted_is_not_used_any_longer(self, world: World) -> None:
        world.secret()
        source = world.source(PULL)
        async with world.store(source) as store:
            await listed(store, world.subject())
            world.cluster.delete("secrets", "pull", HOME)
            world.clock.now += KEEP_SECONDS
            await listed(store, world.subject())
            await renewed(source)
            world.registry.requests.clear()
            assert "does not exist" in (await unavailable(store, world)).reason


class TestUnreachable:
    FAULTS: Sequence[tuple[Any, str]] = (
        (problem(500), "answered 500"),
        (problem(401), "answered 401"),
        (problem(429), "answered 429"),
        (status(403, body=b"<html>a proxy</html>"), "answered 403 without saying why"),
        (status(404, body=b"{", headers={"Content-Type": "application/json"}), "gave an answer that cannot be read"),
        (reset(), "is out of reach"),
        (raw(b"no http\r\n\r\n"), "is out of reach"),
        (hang(), "did not answer within 0.5 s"),
    )

    @pytest.mark.parametrize(("fault", "told"), FAULTS)
    async def test_without_a_reading_nothing_is_decided(self, world: World, fault: Any, told: str) -> None:
        world.secret()
        world.cluster.fault("*/secrets/*", fault)
        async with world.store(world.source(PULL, read_seconds=0.5)) as store:
            error = await unavailable(store, world)
            assert f"the Secret {HOME}/pull cannot be read: the API server {told}" in error.reason
            world.cluster.heal()
            world.clock.now += FAILURE_PAUSE_SECONDS
            assert await listed(store, world.subject()) == []

    @pytest.mark.parametrize(("fault", "told"), FAULTS)
    async def test_the_last_good_one_is_used_for_an_hour_and_then_nothing_is_decided(
        self, world: World, fault: Any, told: str
    ) -> None:
        world.secret()
        source = world.source(PULL, read_seconds=0.5)
        async with world.store(source) as store:
            await listed(store, world.subject())
            world.cluster.fault("*/secrets/*", fault)
            for minutes in (1, 59):
                world.clock.now = 1000 + minutes * 60
                await listed(store, world.subject())
                await renewed(source)
            world.clock.now = 1000 + KEEP_UNREACHABLE_SECONDS
            world.registry.requests.clear()
            assert told in (await unavailable(store, world)).reason
            world.cluster.heal()
            world.clock.now += FAILURE_PAUSE_SECONDS
            assert await listed(store, world.subject()) == []

    async def test_nobody_listens_any_more(self, world: World) -> None:
        async with KubernetesSimulator() as cluster:
            data = docker_config({world.registry.host: ("robot", OLD)})
            cluster.secret("pull", HOME, {".dockerconfigjson": data}, MODERN)
            client = cluster.client()
            source = PullSecretCredentials(client, secrets=[PULL], monotonic=world.clock)
            await source.credential(world.registry.host, NAME)
        world.clock.now += KEEP_SECONDS
        for _ in range(3):
            assert await source.credential(world.registry.host, NAME) == Credential("robot", OLD)
            await renewed(source)
        await source.aclose()
        await client.close()

    async def test_refused_by_the_registry_and_away_from_the_api_server_the_last_good_one_is_not_lost(
        self, world: World
    ) -> None:
        world.secret()
        world.registry.push_image("team/private")
        async with world.store(world.source(PULL, read_seconds=0.5)) as store:
            await listed(store, world.subject())
            world.clock.now += REFUSAL_PAUSE_SECONDS
            world.cluster.fault("*/secrets/*", hang())
            world.registry.fault("*/team/private/*", status(403))
            with pytest.raises(Undecided, match="REGISTRY_UNAUTHORIZED"):
                await listed(store, world.subject("team/private"))
            assert await listed(store, world.subject()) == []


async def test_n11_no_secret_is_in_any_error_log_or_repr(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    world.cluster.token = "token-of-the-service-account"
    client = world.cluster.client()
    output = io.StringIO()
    documents = [
        docker_config({world.registry.host: ("robot", OLD)}),
        docker_config({world.registry.host: ("robot", NEW)}),
        json.dumps({"auths": {world.registry.host: {"auth": f"{OLD}!"}}}).encode(),
        json.dumps({"auths": OLD}).encode(),
        OLD.encode(),
    ]
    faults = [None, status(500, body=OLD.encode()), status(200, body=json.dumps({"data": OLD}).encode())]
    with capture_logs() as logs:
        for document in documents:
            for fault in faults:
                world.cluster.heal()
                if fault is not None:
                    world.cluster.fault("*/secrets/*", fault)
                world.cluster.secret("pull", HOME, {".dockerconfigjson": document}, MODERN)
                source = PullSecretCredentials(client, secrets=[PULL], monotonic=world.clock)
                async with world.store(source) as store:
                    try:
                        await listed(store, world.subject())
                    except Exception as error:
                        traceback.print_exception(error, file=output)
                        output.write(repr(error) + str(error))
                    output.write(repr(vars(store._authenticator)) + repr(vars(source)) + repr(vars(source._readings)))
    await client.close()
    said = output.getvalue() + caplog.text + repr(logs)
    encoded = [base64.b64encode(f"robot:{password}".encode()).decode() for password in (OLD, NEW)]
    wrapped = [base64.b64encode(document).decode()[:40] for document in documents]
    assert [one for one in (OLD, NEW, *encoded, *wrapped, world.cluster.token) if one in said] == []
    assert f"the Secret {HOME}/pull" in said
    assert "REGISTRY_UNAUTHORIZED" in said


class TestConfiguration:
    """From manifests to what the API server is asked."""

    @asynccontextmanager
    async def snapshot(self, world: World, *texts: str) -> AsyncIterator[Snapshot]:
        assembler = Assembler(lambda _snapshot: None, environment=Environment(kubernetes=world.client))
        try:
            yield await assembler.apply(read(*good(Store=""), *texts))
        finally:
            await assembler.aclose()

    @staticmethod
    def manifest(provider: str, *, namespace: str = "") -> str:
        kind = "NamespacedStore" if namespace else "Store"
        metadata = f"{{name: one, namespace: {namespace}}}" if namespace else "{name: one}"
        return f"""
apiVersion: config.ratify.deislabs.io/v1beta1
kind: {kind}
metadata: {metadata}
spec:
  name: oras
  parameters: {{useHttp: true, {provider}}}
"""

    @pytest.mark.parametrize(
        ("provider", "namespace", "asked"),
        [
            ("authProvider: {name: k8Secrets}", "", ["serviceaccounts/default"]),
            ("authProvider: {name: k8Secrets, serviceAccountName: robot}", "", ["serviceaccounts/robot"]),
            ("authProvider: {name: k8Secrets}", "team-a", ["serviceaccounts/default"]),
            (
                "authProvider: {name: k8Secrets, secrets: [{secretName: one}, {secretName: two, namespace: other}]}",
                "",
                ["secrets/one", "other/secrets/two", "serviceaccounts/default"],
            ),
            (
                "authProviders: [{name: k8Secrets, secrets: [{secretName: one}]}, {name: k8Secrets, secrets: "
                "[{secretName: two, namespace: team-a}], serviceAccountName: robot}]",
                "team-a",
                ["secrets/one", "serviceaccounts/default", "secrets/two", "serviceaccounts/robot"],
            ),
        ],
    )
    async def test_a_store_asks_for_what_it_names_in_its_own_namespace_or_the_providers(
        self, world: World, provider: str, namespace: str, asked: list[str]
    ) -> None:
        world.registry.auth = "none"
        for place in (HOME, "team-a", "other"):
            for name in ("one", "two"):
                world.secret(ObjectName(place, name), key="elsewhere.test")
            for name in ("default", "robot"):
                world.cluster.service_account(name, place)
        texts = [self.manifest(provider, namespace=namespace)]
        if namespace:
            texts.append(self.manifest("authProvider: {name: k8Secrets}"))
        async with self.snapshot(world, *texts) as snapshot:
            [store] = snapshot.scopes[namespace].stores
            await listed(store, world.subject())
        home = namespace or HOME
        paths = [path if path.count("/") == 2 else f"{home}/{path}" for path in asked]
        assert [request.path.removeprefix("/api/v1/namespaces/") for request in world.cluster.requests] == paths

    async def test_a_tenants_store_is_shown_neither_the_providers_secrets_nor_its_service_account(
        self, world: World
    ) -> None:
        world.secret()
        world.cluster.service_account("default", HOME, ["pull"])
        world.cluster.service_account("default", "team-a")
        texts = [self.manifest("authProvider: {name: k8Secrets}", namespace=name) for name in ("", "team-a")]
        async with self.snapshot(world, *texts) as snapshot:
            [own] = snapshot.scopes[""].stores
            assert await listed(own, world.subject()) == []
            [tenants] = snapshot.scopes["team-a"].stores
            with pytest.raises(Undecided, match="none are configured"):
                await listed(tenants, world.subject())

    @pytest.mark.parametrize("namespace", [HOME, "team-b", "kube-system"])
    async def test_a_tenants_store_that_names_a_secret_of_others_is_refused_where_it_is_written(
        self, world: World, namespace: str
    ) -> None:
        secrets = f"secrets: [{{secretName: own}}, {{secretName: pull, namespace: {namespace}}}]"
        text = self.manifest(f"authProvider: {{name: k8Secrets, {secrets}}}", namespace="team-a")
        with pytest.raises(ConfigurationError) as caught:
            read(*good(), text)
        assert [fault.path for fault in caught.value.faults] == ["spec.parameters.authProvider.secrets[1].namespace"]
        assert "must be team-a" in caught.value.faults[0].message

    @pytest.mark.parametrize("name", ["../../other/secrets/x", "other/x", "x?watch=1", "", "-", "a" * 254])
    @pytest.mark.parametrize("key", ["serviceAccountName", "secretName"])
    async def test_a_name_that_would_lead_elsewhere_is_refused_where_it_is_written(self, name: str, key: str) -> None:
        setting = (
            f"serviceAccountName: {name!r}" if key == "serviceAccountName" else f"secrets: [{{secretName: {name!r}}}]"
        )
        with pytest.raises(ConfigurationError) as caught:
            read(*good(), self.manifest(f"authProvider: {{name: k8Secrets, {setting}}}", namespace="team-a"))
        assert caught.value.faults[0].path.endswith(key)

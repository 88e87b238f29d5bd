"""The oras store and who it says it is: tokens, passwords, and to whom they go (attacks N01 to N03, N06, N11)."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import traceback
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import trustme

from provider.credentials.chain import CredentialChain
from provider.credentials.docker_config import DockerConfigCredentials
from provider.errors import Undecided
from provider.interfaces import Credential
from provider.oci import Descriptor, Digest, Reference
from provider.stores.oras import MAX_CREDENTIALS, OrasStore
from provider.stores.tokens import CHALLENGE_SECONDS, MAX_SPURNED_EACH, REFUSAL_SECONDS
from tests.simulators.listener import Fault, Reply, body, delay, endless, hang, headers, status
from tests.simulators.registry import SIGNATURE, RegistrySimulator, TokenIssuer, TokenServiceSimulator
from tests.simulators.stores import QUICK, Clock, Credentials, listed, oras_store, subject_of

NAME = "team/app"
JWS = "application/jose+json"
ROBOT = Credential("robot", "hunter2-password")


@pytest.fixture
async def registry() -> AsyncIterator[RegistrySimulator]:
    """A registry with its own token service, which knows robot and nobody else."""
    async with RegistrySimulator() as simulator:
        simulator.auth = "bearer"
        simulator.issuer = TokenIssuer(accounts={"robot": ROBOT.password}, anonymous=False)
        yield simulator


def robot(*registries: RegistrySimulator) -> Credentials:
    return Credentials({registry.host: ROBOT for registry in registries})


async def read(store: OrasStore, registry: RegistrySimulator, image: Descriptor, name: str = NAME) -> int:
    """List and fetch; how many signatures there are."""
    subject = subject_of(registry, name, image)
    entries = await listed(store, subject)
    for entry in entries:
        await store.fetch_manifest(subject, entry)
    return len(entries)


def push(registry: RegistrySimulator, name: str = NAME) -> Descriptor:
    image = registry.push_image(name, tag="v1")
    registry.push_artifact(name, image, SIGNATURE, [(f"envelope of {name}".encode(), JWS)])
    return image


class TestTokens:
    async def test_one_401_teaches_a_registry_and_one_token_serves_a_repository(
        self, registry: RegistrySimulator
    ) -> None:
        first, second = push(registry), push(registry, "team/other")
        async with oras_store(registry, credentials=robot(registry)) as store:
            assert await read(store, registry, first) == 1
            assert [request.path.split("/")[1] for request in registry.requests] == ["v2", "token", "v2", "v2"]
            registry.requests.clear()
            assert await read(store, registry, second, "team/other") == 1
            assert registry.lines[0] == "GET /token"
            assert len(registry.requests) == 3
            registry.requests.clear()
            assert await read(store, registry, first) == 1
            assert len(registry.requests) == 1
        assert len(registry.issuer.issued) == 2

    async def test_the_token_request_names_service_and_the_pull_scope_of_the_one_repository(
        self, registry: RegistrySimulator
    ) -> None:
        image = push(registry)
        registry.challenge = (
            f'Bearer realm="{registry.url}/token?keep=1",service="simulator",'
            'scope="repository:secret/other:pull,push registry:catalog:*"'
        )
        async with oras_store(registry, credentials=robot(registry)) as store:
            assert await read(store, registry, image) == 1
        [asked] = [request for request in registry.requests if request.path == "/token"]
        assert asked.query == {"keep": "1", "service": "simulator", "scope": f"repository:{NAME}:pull"}

    async def test_an_anonymous_token_does_where_nothing_is_configured(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        registry.issuer.anonymous = True
        registry.issuer.member = "access_token"
        registry.issuer.lifetime = None
        async with oras_store(registry) as store:
            assert await read(store, registry, image) == 1
        assert [request.authorization for request in registry.requests if request.path == "/token"] == [None]

    async def test_an_identity_token_is_exchanged_by_post(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        registry.issuer.refresh_tokens.add("refresh-me")
        credentials = Credentials({registry.host: Credential(identity_token="refresh-me")})
        async with oras_store(registry, credentials=credentials) as store:
            assert await read(store, registry, image) == 1
        [asked] = [request for request in registry.requests if request.path == "/token"]
        assert (asked.method, asked.authorization, asked.query) == ("POST", None, {})
        assert b"grant_type=refresh_token" in asked.body

    async def test_a_registry_token_is_sent_as_it_is(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        registry.issuer.issued["ready-made"] = f"repository:{NAME}:pull"
        credentials = Credentials({registry.host: Credential(registry_token="ready-made")})
        async with oras_store(registry, credentials=credentials) as store:
            assert await read(store, registry, image) == 1
            registry.issuer.revoke()
            with pytest.raises(Undecided, match="REGISTRY_UNAUTHORIZED"):
                await read(store, registry, image)
        assert "/token" not in {request.path for request in registry.requests}

    async def test_a_registry_token_with_a_line_break_is_not_sent(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        credentials = Credentials({registry.host: Credential(registry_token="a\r\nX-Evil: 1")})
        async with oras_store(registry, credentials=credentials) as store:
            with pytest.raises(Undecided, match="CREDENTIALS_UNAVAILABLE"):
                await read(store, registry, image)
        assert registry.requests == []

    async def test_a_token_is_renewed_before_it_expires(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        clock = Clock()
        async with oras_store(registry, credentials=robot(registry), monotonic=clock) as store:
            await read(store, registry, image)
            clock.now += 0.89 * 300
            await read(store, registry, image)
            assert len(registry.issuer.issued) == 1
            clock.now += 0.02 * 300
            await read(store, registry, image)
        assert len(registry.issuer.issued) == 2
        assert registry.lines.count("GET /token") == 2

    async def test_a_token_that_is_refused_is_asked_for_once_more(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        async with oras_store(registry, credentials=robot(registry)) as store:
            await read(store, registry, image)
            registry.issuer.revoke()
            registry.requests.clear()
            assert await read(store, registry, image) == 1
        assert [line.split("/")[1] for line in registry.lines] == ["v2", "token", "v2"]

    async def test_a_late_refusal_of_an_old_token_does_not_cost_the_new_one(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        blob = Descriptor(JWS, Digest.of(f"envelope of {NAME}".encode()), len(f"envelope of {NAME}"))
        async with oras_store(registry, credentials=robot(registry)) as store:
            subject = subject_of(registry, NAME, image)
            await listed(store, subject)
            registry.issuer.revoke()
            registry.requests.clear()
            registry.fault("*/blobs/*", delay(0.05), times=1)
            late = asyncio.create_task(store.fetch_blob(subject, blob, 100))
            await asyncio.sleep(0.01)
            await listed(store, subject)
            await late
        assert registry.lines.count("GET /token") == 1

    async def test_a_token_service_that_is_down_is_not_taken_for_one_of_another_repository(
        self, registry: RegistrySimulator
    ) -> None:
        first, second = push(registry), push(registry, "team/other")
        async with oras_store(registry, credentials=robot(registry)) as store:
            await read(store, registry, first)
            registry.fault("/token", status(500))
            registry.requests.clear()
            with pytest.raises(Undecided, match="REGISTRY_UNAVAILABLE"):
                await read(store, registry, second, "team/other")
        assert set(registry.lines) == {"GET /token"}

    async def test_a_registry_that_accepts_no_token_is_not_asked_for_ever(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        registry.fault("/v2/*", status(401, headers={"WWW-Authenticate": f'Bearer realm="{registry.url}/token"'}))
        async with oras_store(registry, credentials=robot(registry)) as store:
            with pytest.raises(Undecided, match=r"REGISTRY_UNAUTHORIZED.*401"):
                await read(store, registry, image)
        assert len(registry.requests) == 3

    async def test_many_images_at_once_share_one_token(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        async with oras_store(registry, credentials=robot(registry)) as store:
            assert await asyncio.gather(*(read(store, registry, image) for _ in range(20))) == [1] * 20
        assert registry.lines.count("GET /token") == 1

    async def test_who_gives_up_waiting_for_a_token_spoils_it_for_nobody(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        arrived, go = asyncio.Event(), asyncio.Event()

        async def held(request: object, reply: object) -> object:
            arrived.set()
            await go.wait()
            return reply

        registry.fault("/token", held)  # type: ignore[arg-type]
        async with oras_store(registry, credentials=robot(registry)) as store:
            leader, follower = (asyncio.create_task(read(store, registry, image)) for _ in range(2))
            await arrived.wait()
            leader.cancel()
            go.set()
            assert await follower == 1
            with pytest.raises(asyncio.CancelledError):
                await leader

    async def test_a_registry_whose_repositories_have_realms_of_their_own_is_learnt(
        self, registry: RegistrySimulator
    ) -> None:
        first, second = push(registry), push(registry, "team/other")
        other_issuer = TokenIssuer(accounts=registry.issuer.accounts, anonymous=False, issued=registry.issuer.issued)
        async with (
            TokenServiceSimulator(other_issuer) as service,
            oras_store(registry, credentials=robot(registry)) as store,
        ):
            assert await read(store, registry, first) == 1
            registry.fault("/token", status(404))
            registry.realm = f"{service.url}/other/token"
            assert await read(store, registry, second, "team/other") == 1
            service.requests.clear()
            registry.issuer.revoke()
            assert await read(store, registry, second, "team/other") == 1
        assert len(service.requests) == 1

    async def test_a_challenge_is_forgotten_after_a_while(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        clock = Clock()
        async with oras_store(registry, credentials=robot(registry), monotonic=clock) as store:
            await read(store, registry, image)
            clock.now += CHALLENGE_SECONDS + 1
            registry.auth = "none"
            registry.requests.clear()
            assert await read(store, registry, image) == 1
        assert [request.authorization for request in registry.requests] == [None]


class TestBasic:
    async def test_the_password_goes_along_once_the_registry_has_asked_for_it(
        self, registry: RegistrySimulator
    ) -> None:
        registry.auth, registry.accounts = "basic", {"robot": ROBOT.password}
        image = push(registry)
        async with oras_store(registry, credentials=robot(registry)) as store:
            assert await read(store, registry, image) == 1
        assert [bool(request.authorization) for request in registry.requests] == [False, True, True]

    async def test_without_a_password_nothing_is_decided(self, registry: RegistrySimulator) -> None:
        registry.auth = "basic"
        image = push(registry)
        async with oras_store(registry) as store:
            for _ in range(2):
                with pytest.raises(Undecided, match=r"REGISTRY_UNAUTHORIZED.*none are configured"):
                    await read(store, registry, image)

    async def test_a_wrong_password_is_tried_once_an_operation(self, registry: RegistrySimulator) -> None:
        registry.auth, registry.accounts = "basic", {"robot": "other"}
        image = push(registry)
        async with oras_store(registry, credentials=robot(registry)) as store:
            with pytest.raises(Undecided, match="REGISTRY_UNAUTHORIZED"):
                await read(store, registry, image)
        assert [bool(request.authorization) for request in registry.requests] == [False, True]

    async def test_bearer_is_preferred_where_both_are_offered(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        registry.challenge = f'Basic realm="x", Bearer realm="{registry.url}/token"'
        async with oras_store(registry, credentials=robot(registry)) as store:
            assert await read(store, registry, image) == 1
        sent = {request.authorization for request in registry.requests if request.path != "/token"}
        assert not any(value and value.startswith("Basic") for value in sent)

    @pytest.mark.parametrize("challenge", ["", "Negotiate", "Bearer", 'Bearer realm="', 'Digest realm="x", qop=auth'])
    async def test_a_challenge_that_cannot_be_answered_is_undecided(
        self, registry: RegistrySimulator, challenge: str
    ) -> None:
        image = push(registry)
        registry.fault("/v2/*", headers({"WWW-Authenticate": challenge}))
        async with oras_store(registry, credentials=robot(registry)) as store:
            with pytest.raises(Undecided, match="REGISTRY_UNAUTHORIZED"):
                await read(store, registry, image)


class TestTokenServiceTrouble:
    @pytest.mark.parametrize(
        ("fault", "code"),
        [
            (status(401), "REGISTRY_UNAUTHORIZED"),
            (status(403), "REGISTRY_UNAUTHORIZED"),
            (status(400), "REGISTRY_UNAUTHORIZED"),
            (status(429, headers={"Retry-After": "5"}), "REGISTRY_THROTTLED"),
            (status(500), "REGISTRY_UNAVAILABLE"),
            (status(302, headers={"Location": "http://127.0.0.1:1/"}), "REGISTRY_PROTOCOL"),
            (status(204), "REGISTRY_PROTOCOL"),
            (body(b"not json"), "REGISTRY_PROTOCOL"),
            (body(b"[]"), "REGISTRY_PROTOCOL"),
            (body(b'{"token": 7}'), "REGISTRY_PROTOCOL"),
            (body(b'{"token": ""}'), "REGISTRY_PROTOCOL"),
            (body(b'{"token": "a\\r\\nX-Evil: 1"}'), "REGISTRY_PROTOCOL"),
            (body(b'{"token": "a b"}'), "REGISTRY_PROTOCOL"),
            (body(b'{"token": "' + b"a" * 300_000 + b'"}'), "REGISTRY_PROTOCOL"),
            (endless(), "REGISTRY_PROTOCOL"),
        ],
    )
    async def test_a_token_service_that_fails_leaves_things_undecided(
        self, registry: RegistrySimulator, fault: Fault, code: str
    ) -> None:
        image = push(registry)
        registry.fault("/token", fault)
        async with oras_store(registry, credentials=robot(registry)) as store:
            with pytest.raises(Undecided, match=code):
                await read(store, registry, image)

    async def test_n22_a_token_service_that_never_answers_is_given_up(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        registry.fault("/token", hang())
        settings = replace(QUICK, timeout_seconds=0.2, attempt_timeout_seconds=60)
        async with oras_store(registry, credentials=robot(registry), settings=settings) as store:
            with pytest.raises(Undecided, match="REGISTRY_UNAVAILABLE"):
                await read(store, registry, image)
            await asyncio.sleep(0.2)  # the flight itself ends by its own limit, with nobody waiting any more

    @pytest.mark.parametrize("lifetime", [b"0", b"-5", b"true", b'"300"', b"1e300", b"null"])
    async def test_odd_lifetimes_are_borne(self, registry: RegistrySimulator, lifetime: bytes) -> None:
        image = push(registry)
        registry.issuer.issued["fixed"] = f"repository:{NAME}:pull"
        registry.fault("/token", body(b'{"token": "fixed", "expires_in": ' + lifetime + b"}"))
        async with oras_store(registry, credentials=robot(registry)) as store:
            assert await read(store, registry, image) == 1

    async def test_a_wrong_password_is_not_tried_for_every_image_so_that_the_account_is_not_locked(
        self, registry: RegistrySimulator
    ) -> None:
        image = push(registry)
        registry.issuer.accounts["robot"] = "other"
        clock = Clock()
        async with oras_store(registry, credentials=robot(registry), monotonic=clock) as store:
            for _ in range(5):
                with pytest.raises(Undecided, match="REGISTRY_UNAUTHORIZED"):
                    await read(store, registry, image)
            assert registry.lines.count("GET /token") == 1
            clock.now += REFUSAL_SECONDS + 1
            registry.issuer.accounts["robot"] = ROBOT.password
            assert await read(store, registry, image) == 1

    async def test_a_source_of_credentials_that_fails_is_not_replaced_by_anonymous_access(
        self, registry: RegistrySimulator
    ) -> None:
        image = push(registry)
        registry.auth = "none"

        class Broken:
            async def credential(self, domain: str, path: str) -> Credential | None:
                raise Undecided("CREDENTIALS_UNAVAILABLE", "the vault is sealed")

        async with oras_store(registry, credentials=Broken()) as store:
            with pytest.raises(Undecided, match="CREDENTIALS_UNAVAILABLE"):
                await read(store, registry, image)
        assert registry.requests == []


class TestWhereCredentialsGo:
    async def test_n01_a_realm_on_another_host_gets_no_credentials(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        async with TokenServiceSimulator(registry.issuer, host="localhost") as service:
            registry.realm = f"{service.url}/token"
            async with oras_store(registry, credentials=robot(registry)) as store:
                with pytest.raises(Undecided, match=r"REGISTRY_UNAUTHORIZED.*localhost.*token hosts") as caught:
                    await read(store, registry, image)
        assert service.requests == []
        assert "tokenHosts" in caught.value.remediation

    async def test_n01b_a_realm_that_the_operator_listed_gets_them(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        async with TokenServiceSimulator(registry.issuer, host="localhost") as service:
            registry.realm = f"{service.url}/token"
            profile = {"token_hosts": frozenset({"localhost"})}
            async with oras_store(registry, credentials=robot(registry), profile=profile) as store:
                assert await read(store, registry, image) == 1
        assert [request.authorization is not None for request in service.requests] == [True]

    @pytest.mark.parametrize("entry", ["ocalhost", "localhos", "localhost.evil.org", "localhost:1", "*", ".localhost"])
    async def test_n01_a_listed_host_is_a_whole_name(self, registry: RegistrySimulator, entry: str) -> None:
        image = push(registry)
        async with TokenServiceSimulator(registry.issuer, host="localhost") as service:
            registry.realm = f"{service.url}/token"
            profile = {"token_hosts": frozenset({entry})}
            async with oras_store(registry, credentials=robot(registry), profile=profile) as store:
                with pytest.raises(Undecided, match="REGISTRY_UNAUTHORIZED"):
                    await read(store, registry, image)
        assert service.requests == []

    async def test_n02_a_tls_registry_cannot_name_a_plain_realm(self) -> None:
        authority = trustme.CA()
        issuer = TokenIssuer(accounts={"robot": ROBOT.password})
        async with RegistrySimulator(tls=authority) as registry, TokenServiceSimulator(issuer) as service:
            registry.auth = "bearer"
            image = push(registry)
            registry.realm = f"{service.url}/token"
            profile = {"plain_http": False, "ca_bundle": authority.cert_pem.bytes()}
            for credentials in (robot(registry), None):
                async with oras_store(registry, credentials=credentials, profile=profile) as store:
                    with pytest.raises(Undecided, match=r"REGISTRY_PROTOCOL.*not https"):
                        await read(store, registry, image)
        assert service.requests == []

    @pytest.mark.parametrize(
        "realm",
        [
            "https://10.0.0.1/token",
            "https://192.168.0.1/token",
            "https://localhost:1/token",
            "https://[::1]:1/token",
            "https://[::ffff:10.0.0.1]/token",
            "https://[64:ff9b::a00:1]/token",
            "https://[2002:a00:1::]/token",
            "https://[fc00::1]/token",
            "https://169.254.169.254/token",
            "https://[fe80::1]/token",
            "https://[fd00:ec2::254]/token",
            "https://0.0.0.0/token",
        ],
    )
    async def test_n03_a_realm_at_an_inner_address_is_not_asked_even_anonymously(
        self, registry: RegistrySimulator, realm: str
    ) -> None:
        image = push(registry)
        registry.realm = realm
        async with oras_store(registry) as store:
            with pytest.raises(Undecided, match=r"REGISTRY_PROTOCOL.*not connected to"):
                await read(store, registry, image)

    async def test_n03_metadata_services_are_not_asked_even_when_listed(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        registry.realm = "http://169.254.169.254/token"
        profile = {"token_hosts": frozenset({"169.254.169.254"})}
        async with oras_store(registry, credentials=robot(registry), profile=profile) as store:
            with pytest.raises(Undecided, match=r"REGISTRY_PROTOCOL.*link-local"):
                await read(store, registry, image)

    async def test_n03_an_inner_realm_that_is_listed_is_asked(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        registry.issuer.anonymous = True
        async with TokenServiceSimulator(registry.issuer, host="localhost") as service:
            registry.realm = f"{service.url}/token"
            profile = {"token_hosts": frozenset({service.host})}
            async with oras_store(registry, profile=profile) as store:
                assert await read(store, registry, image) == 1

    @pytest.mark.parametrize(
        "realm",
        ["", "token", "/token", "ftp://127.0.0.1/token", "http://robot:pw@127.0.0.1/token", "http://[", "http://"],
    )
    async def test_n01_a_realm_that_is_no_url_is_not_asked(self, registry: RegistrySimulator, realm: str) -> None:
        image = push(registry)
        registry.challenge = f'Bearer realm="{realm}",service="x"'
        async with oras_store(registry, credentials=robot(registry)) as store:
            with pytest.raises(Undecided, match=r"REGISTRY_PROTOCOL|REGISTRY_UNAUTHORIZED"):
                await read(store, registry, image)
        assert len(registry.requests) == 1

    async def test_n06_each_registry_gets_its_own_credentials_and_tokens_alone(
        self, registry: RegistrySimulator
    ) -> None:
        async with RegistrySimulator(host="localhost") as other:
            other.auth = "bearer"
            other.issuer = TokenIssuer(accounts={"alice": "wonderland-password"}, anonymous=False)
            image, other_image = push(registry), push(other)
            credentials = Credentials({registry.host: ROBOT, other.host: Credential("alice", "wonderland-password")})
            async with oras_store(registry, other, credentials=credentials) as store:
                await asyncio.gather(
                    *(read(store, registry, image) for _ in range(5)),
                    *(read(store, other, other_image) for _ in range(5)),
                )
            sent = [
                {request.authorization for request in simulator.requests} - {None} for simulator in (registry, other)
            ]
        assert len(sent[0]) == len(sent[1]) == 2  # the password to the token service, the token to the registry
        assert sent[0].isdisjoint(sent[1])

    async def test_n06_another_credential_does_not_get_the_token_of_the_first(
        self, registry: RegistrySimulator
    ) -> None:
        image = push(registry)
        credentials = robot(registry)
        async with oras_store(registry, credentials=credentials) as store:
            await read(store, registry, image)
            credentials.by_domain.clear()
            with pytest.raises(Undecided, match="REGISTRY_UNAUTHORIZED"):
                await read(store, registry, image)

    async def test_n11_no_secret_is_in_any_error_log_or_repr(
        self, registry: RegistrySimulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        image = push(registry)
        registry.issuer.refresh_tokens.add("refresh-me-secret")
        output = io.StringIO()
        for credential in (
            ROBOT,
            Credential(identity_token="refresh-me-secret"),
            Credential(registry_token="sesame-secret"),
        ):
            for fault in (None, status(401), status(500), body(b"{}"), hang()):
                registry.heal()
                if fault is not None:
                    registry.fault("*/manifests/*", fault)
                    registry.fault("/token", fault)
                settings = replace(QUICK, timeout_seconds=0.05, attempt_timeout_seconds=0.02)
                credentials = Credentials({registry.host: credential})
                async with oras_store(registry, credentials=credentials, settings=settings) as store:
                    try:
                        await read(store, registry, image)
                    except Exception as error:
                        traceback.print_exception(error, file=output)
                        output.write(repr(error))
                    output.write(repr(vars(store)) + repr(vars(store._authenticator)) + repr(vars(store._transport)))
        said = output.getvalue() + caplog.text
        secrets = [ROBOT.password, "refresh-me-secret", "sesame-secret", *registry.issuer.issued]
        assert [secret for secret in secrets if secret in said] == []
        assert "REGISTRY_" in said


class Rotating(Credentials):
    """A source that reads anew when it is told of a refusal, as that of Azure, and has the next credential then."""

    def __init__(self, domain: str, *passwords: str) -> None:
        super().__init__({domain: Credential("robot", passwords[0])})
        self._next = list(passwords[1:])
        self.told = 0

    def refused(self, domain: str, path: str) -> None:
        self.told += 1
        if self._next:
            self.by_domain[domain] = Credential("robot", self._next.pop(0))


class TestRotation:
    """Sources that can be read anew; pull secrets have tests of their own in test_pull_secrets.py."""

    @pytest.mark.parametrize("auth", ["basic", "bearer"])
    async def test_what_was_rotated_is_shown_within_the_same_request(
        self, registry: RegistrySimulator, auth: Literal["basic", "bearer"]
    ) -> None:
        image = push(registry)
        registry.auth, registry.accounts = auth, {"robot": ROBOT.password}
        credentials = Rotating(registry.host, "old", ROBOT.password)
        async with oras_store(registry, credentials=credentials) as store:
            assert await read(store, registry, image) == 1
        assert credentials.told == 1

    async def test_what_was_not_rotated_is_not_shown_twice(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        registry.auth = "basic"
        credentials = Rotating(registry.host, "old")
        async with oras_store(registry, credentials=credentials) as store:
            with pytest.raises(Undecided, match="REGISTRY_UNAUTHORIZED"):
                await read(store, registry, image)
        assert [request.authorization is None for request in registry.requests] == [True, False]

    async def test_a_source_that_always_has_another_is_not_followed_for_ever(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        registry.auth = "basic"
        credentials = Rotating(registry.host, *(f"old-{number}" for number in range(200)))
        async with oras_store(registry, credentials=credentials) as store:
            for _ in range(30):
                registry.requests.clear()
                with pytest.raises(Undecided, match="REGISTRY_UNAUTHORIZED"):
                    await read(store, registry, image)
                assert len(registry.requests) <= 1 + MAX_CREDENTIALS
            assert len(store._authenticator._spurned[registry.host, NAME]) <= MAX_SPURNED_EACH

    async def test_all_who_were_refused_together_go_on_with_the_new_one(self, registry: RegistrySimulator) -> None:
        """The first to come back has it read anew; the others were refused with the old one all the same."""
        image = push(registry)
        registry.auth = "basic"
        registry.accounts = {"robot": "old"}
        credentials = Rotating(registry.host, "old", ROBOT.password)
        async with oras_store(registry, credentials=credentials) as store:
            await read(store, registry, image)
            registry.accounts = {"robot": ROBOT.password}
            subject = subject_of(registry, NAME, image)
            assert [len(one) for one in await asyncio.gather(*(listed(store, subject) for _ in range(20)))] == [1] * 20

    async def test_a_docker_configuration_that_changed_meanwhile_counts_within_the_same_request(
        self, registry: RegistrySimulator, tmp_path: Path
    ) -> None:
        """As when the kubelet swaps a mounted Secret just as the registry is asked."""
        image = push(registry)
        registry.auth, registry.accounts = "basic", {"robot": "new"}
        path = tmp_path / "config.json"

        def put(password: str) -> None:
            path.write_text(json.dumps({"auths": {registry.host: {"username": "robot", "password": password}}}))

        async def rotate(request: object, reply: Reply) -> Reply:
            put("new")
            return reply

        put("old-password")
        registry.fault("*/referrers/*", rotate)
        async with oras_store(registry, credentials=DockerConfigCredentials(path)) as store:
            assert await read(store, registry, image) == 1

    async def test_of_several_sources_the_next_is_asked_when_one_was_refused(self, registry: RegistrySimulator) -> None:
        image = push(registry)
        registry.auth, registry.accounts = "basic", {"robot": ROBOT.password}
        sources = [Credentials({registry.host: Credential("stranger", "x")}), robot(registry)]
        async with oras_store(registry, credentials=CredentialChain(sources)) as store:
            assert await read(store, registry, image) == 1

    async def test_a_credential_for_https_alone_is_not_shown_over_plain_http_even_as_the_second(
        self, registry: RegistrySimulator
    ) -> None:
        image = push(registry)
        registry.auth = "basic"
        cloud = Credential("cloud", "x", own_origin_only=True)
        sources = [Credentials({registry.host: ROBOT}), Credentials({registry.host: cloud})]
        async with oras_store(registry, credentials=CredentialChain(sources)) as store:
            with pytest.raises(Undecided, match=r"CREDENTIALS_UNAVAILABLE.*for https alone"):
                await read(store, registry, image)
        assert {request.authorization for request in registry.requests} == {None, basic(ROBOT)}


def basic(credential: Credential) -> str:
    """The field that shows it."""
    return "Basic " + base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()


async def test_docker_hub_is_known_by_its_name_and_found_at_its_host() -> None:
    """No request is made: the credential source refuses, and tells what it was asked for."""
    asked: list[tuple[str, str]] = []

    class Watching:
        async def credential(self, domain: str, path: str) -> Credential | None:
            asked.append((domain, path))
            raise Undecided("CREDENTIALS_UNAVAILABLE", "not here")

    async with oras_store(credentials=Watching()) as store:
        with pytest.raises(Undecided, match="CREDENTIALS_UNAVAILABLE"):
            await store.resolve(Reference.parse("nginx"))
    assert asked == [("docker.io", "library/nginx")]

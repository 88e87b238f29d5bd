"""Images in Amazon ECR, read with the IAM role of a service account, against simulators under genuine names
(attacks N07, N11)."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from provider.assembly import Assembler
from provider.configuration.manifests import load
from provider.credentials.aws import ElasticContainerRegistryCredentials
from provider.credentials.renewal import FAILURE_PAUSE_SECONDS, REFUSAL_PAUSE_SECONDS
from provider.demo import pki
from provider.egress import ProxySettings
from provider.errors import Undecided
from provider.executor import Executor
from provider.interfaces import Credential
from provider.oci import Reference
from provider.parts import Environment
from provider.stores.oras import OrasStore
from tests.integration.test_admission import MANIFESTS, ROOT, SIGNER, push_signature
from tests.simulators.azure.entra import service_account_token
from tests.simulators.azure.hosts import Hosts
from tests.simulators.clouds.aws import (
    REGION,
    REGISTRY,
    ROLE,
    EcrRegistrySimulator,
    ElasticContainerRegistryApi,
    SecurityTokenSimulator,
    error,
)
from tests.simulators.listener import Fault, body, delay, hang, reset, status
from tests.simulators.registry import SIGNATURE, BlobStorageSimulator
from tests.simulators.stores import QUICK, Clock
from tests.simulators.witness import Witness, witness

NAME = "team/app"
STORAGE = "https://prod-eu-west-1-starport-layer-bucket.s3.eu-west-1.amazonaws.com/layer"
JSON = {"Content-Type": "application/x-amz-json-1.1"}
KEYS = b"<AccessKeyId>A</AccessKeyId><SecretAccessKey>B</SecretAccessKey><SessionToken>C</SessionToken>"


@dataclass
class Amazon:
    """A pod of a cluster on EKS, and AWS around it."""

    sts: SecurityTokenSimulator
    api: ElasticContainerRegistryApi
    registry: EcrRegistrySimulator
    storage: BlobStorageSimulator
    hosts: Hosts
    variables: dict[str, str]
    token: str

    @property
    def proxies(self) -> ProxySettings:
        return ProxySettings.from_environment(self.hosts.variables)

    def credentials(self, **more: Any) -> ElasticContainerRegistryCredentials:
        return ElasticContainerRegistryCredentials(proxies=self.proxies, variables=self.variables, **more)


@pytest.fixture
def heard() -> Iterator[Witness]:
    with witness() as listening:
        yield listening


@pytest.fixture
async def amazon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Witness) -> AsyncIterator[Amazon]:
    """No secret may be heard of, whatever happens in a test."""
    authority = trustme.CA()
    token = service_account_token(audience="sts.amazonaws.com")
    file = tmp_path / "token"
    file.write_text(f"{token}\n")
    async with (
        SecurityTokenSimulator(tls=authority) as sts,
        ElasticContainerRegistryApi(sts, tls=authority) as api,
        EcrRegistrySimulator(api, tls=authority) as registry,
        BlobStorageSimulator(tls=authority, names=("*.s3.eu-west-1.amazonaws.com",)) as storage,
        Hosts(
            {
                **dict.fromkeys(sts.HOSTS, sts),
                **dict.fromkeys(api.HOSTS, api),
                **dict.fromkeys(registry.HOSTS, registry),
                "*.s3.eu-west-1.amazonaws.com": storage,
            },
            authority,
            tmp_path,
        ) as hosts,
    ):
        hosts.apply(monkeypatch)
        sts.web_identities.add(token)
        variables = {"AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": str(file), "AWS_REGION": REGION}
        image = registry.push_image(NAME, tag="v1")
        registry.push_artifact(NAME, image, SIGNATURE, [(b"envelope", "application/jose+json")])
        running = Amazon(sts, api, registry, storage, hosts, variables, token)
        yield running
    heard.check([token, *sts.minted, *api.minted])


async def read(amazon: Amazon, source: ElasticContainerRegistryCredentials, registry: str = REGISTRY) -> int:
    """Resolve, list, fetch everything; how many signatures there are."""
    store = OrasStore("store", QUICK, credentials=source, proxies=amazon.proxies)
    try:
        subject = await store.resolve(Reference.parse(f"{registry}/{NAME}:v1"))
        entries = [entry async for entry in store.list_referrers(subject, SIGNATURE)]
        for entry in entries:
            await store.fetch_manifest(subject, entry)
        return len(entries)
    finally:
        await store.aclose()


async def failure(amazon: Amazon, heard: Witness, **more: Any) -> Undecided:
    """The error of asking for a credential, which is noted for its looks."""
    source = amazon.credentials(**more)
    with pytest.raises(Undecided) as caught:
        await source.credential(REGISTRY, NAME)
    await source.aclose()
    heard.see(caught.value, caught.value.remediation)
    assert caught.value.code == "CREDENTIALS_UNAVAILABLE"
    return caught.value


class TestTheWayThere:
    async def test_a_role_reads_a_registry(self, amazon: Amazon, heard: Witness) -> None:
        source = amazon.credentials()
        assert await read(amazon, source) == 1
        assert (amazon.sts.lines, amazon.api.lines) == (["POST /"], ["POST /"])
        heard.see(source, await source.credential(REGISTRY, NAME))
        await source.aclose()

    @pytest.mark.parametrize(
        ("registry", "api"),
        [
            ("123456789012.dkr.ecr.us-east-1.amazonaws.com", "api.ecr.us-east-1.amazonaws.com"),
            ("123456789012.dkr.ecr-fips.us-east-1.amazonaws.com", "ecr-fips.us-east-1.amazonaws.com"),
            ("123456789012.dkr-ecr.eu-west-1.on.aws", "api.ecr.eu-west-1.amazonaws.com"),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "api.ecr.cn-north-1.amazonaws.com.cn"),
        ],
    )
    async def test_a_registrys_own_region_is_asked(self, amazon: Amazon, registry: str, api: str) -> None:
        source = amazon.credentials()
        assert await read(amazon, source, registry) == 1
        await source.aclose()
        assert [request.headers["Host"] for request in amazon.api.requests] == [api]
        assert [request.headers["Host"] for request in amazon.sts.requests] == ["sts.eu-west-1.amazonaws.com"]

    @pytest.mark.parametrize("region", ["", "eu-west-1.attacker.example", "EU"])
    async def test_without_a_region_of_its_own_the_pod_asks_the_registrys(self, amazon: Amazon, region: str) -> None:
        amazon.variables["AWS_REGION"] = region
        source = amazon.credentials()
        assert await source.credential("123456789012.dkr.ecr.us-east-1.amazonaws.com", NAME) is not None
        await source.aclose()
        assert [request.headers["Host"] for request in amazon.sts.requests] == ["sts.us-east-1.amazonaws.com"]

    async def test_all_who_wait_share_one_exchange_and_all_registries_of_a_region_one_password(
        self, amazon: Amazon
    ) -> None:
        amazon.sts.fault("*", delay(0.05))
        source = amazon.credentials()
        accounts = [f"{number:012}.dkr.ecr.eu-west-1.amazonaws.com" for number in range(20)]
        found = await asyncio.gather(*(source.credential(account, NAME) for account in accounts))
        assert len(set(found)) == len(amazon.sts.requests) == len(amazon.api.requests) == 1
        await source.aclose()

    async def test_blobs_come_from_s3_without_the_password(self, amazon: Amazon) -> None:
        amazon.registry.redirect_blobs_to = STORAGE
        data = b"kept elsewhere"
        blob = amazon.registry.push_blob(NAME, data)
        amazon.storage.blobs[str(blob.digest)] = data
        source = amazon.credentials()
        store = OrasStore("store", QUICK, credentials=source, proxies=amazon.proxies)
        subject = await store.resolve(Reference.parse(f"{REGISTRY}/{NAME}:v1"))
        assert await store.fetch_blob(subject, blob, 1024) == data
        assert [request.authorization for request in amazon.storage.requests] == [None]
        await store.aclose()
        await source.aclose()

    async def test_ratifys_override_names_the_api_of_its_region(self, amazon: Amazon) -> None:
        endpoint = "vpce-0123.api.ecr.eu-west-1.vpce.amazonaws.com"
        amazon.variables |= {"AWS_API_OVERRIDE_ENDPOINT": f"https://{endpoint}", "AWS_API_OVERRIDE_REGION": REGION}
        source = amazon.credentials()
        for registry in (REGISTRY, "123456789012.dkr.ecr.us-east-1.amazonaws.com"):
            assert await source.credential(registry, NAME) is not None
        await source.aclose()
        assert [request.headers["Host"] for request in amazon.api.requests] == [
            endpoint,
            "api.ecr.us-east-1.amazonaws.com",
        ]

    @pytest.mark.parametrize("endpoint", ["http://x.example", "x", "https://u:p@x.example", "https://[", "https://x?y"])
    async def test_an_override_that_is_no_https_url_is_refused(
        self, amazon: Amazon, heard: Witness, endpoint: str
    ) -> None:
        amazon.variables |= {"AWS_API_OVERRIDE_ENDPOINT": endpoint, "AWS_API_OVERRIDE_REGION": REGION}
        assert "AWS_API_OVERRIDE_ENDPOINT" in (await failure(amazon, heard)).reason
        assert amazon.api.requests == []


async def test_a_store_with_awsecrbasic_admits_what_is_signed(
    amazon: Amazon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in amazon.variables.items():
        monkeypatch.setenv(name, value)
    root = textwrap.indent(pki.pem(ROOT.certificate).decode(), " " * 6)
    text = MANIFESTS.format(pem=root).replace("useHttp: true, timeoutSeconds: 2", "authProvider: {name: awsEcrBasic}")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "all.yaml").write_text(text)
    image = amazon.registry.push_image("shop", tag="signed")
    push_signature(amazon.registry, "shop", image, SIGNER)
    amazon.registry.push_image("shop", tag="unsigned", content=b"other")
    executor = Executor()
    assembler = Assembler(executor.use, environment=Environment(proxies=amazon.proxies))
    await assembler.apply(load(tmp_path / "config"))
    assert (await executor.verify(f"{REGISTRY}/shop:signed")).is_success
    assert not (await executor.verify(f"{REGISTRY}/shop:unsigned")).is_success
    await executor.aclose()
    await assembler.aclose()


class TestWhoNeverSeesAPassword:
    @pytest.mark.parametrize(
        "domain",
        [
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.attacker.example",
            "attacker.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.attacker.example.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com:443",
            "123456789012xdkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.example",
            "public.ecr.aws",
            "registry.example.com",
        ],
    )
    async def test_n07_another_host_gets_nothing(self, amazon: Amazon, domain: str) -> None:
        source = amazon.credentials()
        assert await source.credential(domain, NAME) is None
        assert await source.another(domain, NAME, [None]) is None
        await source.aclose()
        assert amazon.hosts.connections == []

    @pytest.mark.parametrize(
        "challenge",
        [
            'Bearer realm="https://attacker.example/token"',
            'Bearer realm="https://123456789012.dkr.ecr.us-east-1.amazonaws.com/token"',
        ],
    )
    async def test_n07_a_registry_that_names_another_token_service_gets_no_password_there(
        self, amazon: Amazon, heard: Witness, challenge: str
    ) -> None:
        amazon.registry.challenge = challenge
        source = amazon.credentials()
        with pytest.raises(Undecided) as caught:
            await read(amazon, source)
        heard.see(caught.value)
        await source.aclose()
        assert caught.value.code == "REGISTRY_UNAUTHORIZED"
        assert {request.authorization for request in amazon.registry.requests} == {None}


class TestWhenPasswordsEnd:
    async def test_a_password_is_given_up_five_minutes_before_its_end(self, amazon: Amazon) -> None:
        clock = Clock()
        source = amazon.credentials(monotonic=clock)
        first = await source.credential(REGISTRY, NAME)
        clock.now += (12 * 3600 - 300) * 0.7
        assert await source.credential(REGISTRY, NAME) == first
        clock.now += (12 * 3600 - 300) * 0.3 + 2
        assert await source.credential(REGISTRY, NAME) != first
        await source.aclose()

    async def test_one_that_does_not_say_lasts_for_a_quarter_of_an_hour(self, amazon: Amazon) -> None:
        amazon.api.fault("*", body(b'{"authorizationData": [{"authorizationToken": "QVdTOnBhc3N3b3JkLTE="}]}'))
        clock = Clock()
        source = amazon.credentials(monotonic=clock)
        assert await source.credential(REGISTRY, NAME) == Credential("AWS", "password-1", own_origin_only=True)
        amazon.api.heal()
        clock.now += 900
        assert await source.credential(REGISTRY, NAME) != Credential("AWS", "password-1", own_origin_only=True)
        await source.aclose()

    async def test_a_password_that_is_refused_is_got_anew_once(self, amazon: Amazon) -> None:
        clock = Clock()
        source = amazon.credentials(monotonic=clock)
        assert await read(amazon, source) == 1
        amazon.api.passwords.clear()
        clock.now += REFUSAL_PAUSE_SECONDS + 1
        assert await read(amazon, source) == 1
        assert len(amazon.api.requests) == 2
        await source.aclose()


class TestFaults:
    @pytest.mark.parametrize("name", ["AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"])
    async def test_a_pod_without_a_role_is_told_of_the_annotation(
        self, amazon: Amazon, heard: Witness, name: str
    ) -> None:
        del amazon.variables[name]
        error = await failure(amazon, heard)
        assert "eks.amazonaws.com/role-arn" in error.remediation
        assert amazon.hosts.connections == []
        amazon.api.minted.append("something to look for")

    @pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
    async def test_a_token_file_that_cannot_be_read_is_told(
        self, amazon: Amazon, heard: Witness, content: bytes | None, tmp_path: Path
    ) -> None:
        file = tmp_path / "other"
        if content is not None:
            file.write_bytes(content)
        amazon.variables["AWS_WEB_IDENTITY_TOKEN_FILE"] = str(file)
        assert "cannot be read" in (await failure(amazon, heard)).reason

    async def test_a_role_that_does_not_trust_the_service_account_is_told_without_what_was_sent(
        self, amazon: Amazon, heard: Witness
    ) -> None:
        amazon.sts.web_identities.clear()
        error = await failure(amazon, heard)
        assert error.reason.endswith(f"did not give the role {ROLE}: it answered 400 InvalidIdentityToken")
        assert "OpenID Connect provider" in error.remediation
        amazon.variables["AWS_ROLE_ARN"] = "arn:aws:iam::123456789012:role/other"
        assert "sts:AssumeRoleWithWebIdentity" in (await failure(amazon, heard)).remediation

    async def test_a_role_that_may_not_ask_for_a_password_is_told_what_it_needs(
        self, amazon: Amazon, heard: Witness
    ) -> None:
        answer = error("com.amazonaws.ecr#AccessDeniedException")
        amazon.api.fault("*", status(400, body=answer, headers=JSON))
        found = await failure(amazon, heard)
        assert "400 AccessDeniedException" in found.reason
        assert "AmazonEC2ContainerRegistryReadOnly" in found.remediation

    async def test_a_wrong_clock_is_told(self, amazon: Amazon, heard: Witness) -> None:
        found = await failure(amazon, heard, clock=lambda: datetime.now(UTC) - timedelta(hours=1))
        assert "InvalidSignatureException" in found.reason
        assert "clock" in found.remediation

    @pytest.mark.parametrize("who", ["sts", "api"])
    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            (status(200, body=b"<html>proxy</html>"), "200 without one that can be read"),
            (status(200, body=b"{}", headers=JSON), "200 without one that can be read"),
            (status(200, body=b'{"authorizationData": []}', headers=JSON), "200 without"),
            (status(200, body=b'{"authorizationData": ["x"]}', headers=JSON), "200 without"),
            (status(200, body=b'{"authorizationData": [{"authorizationToken": "?"}]}', headers=JSON), "200 without"),
            (status(200, body=b'{"authorizationData": [{"authorizationToken": "dTpw"}]}', headers=JSON), "200 without"),
            (
                status(
                    200,
                    body=b'{"authorizationData": [{"authorizationToken": "QVdTOnA=", "expiresAt": 1}]}',
                    headers=JSON,
                ),
                "200 without",
            ),
            (status(200, body=b"<AccessKeyId>A</AccessKeyId>" * 2), "200 without"),
            (status(200, body=2 * KEYS), "200 without"),
            (status(302, headers={"Location": "https://attacker.example/"}), "302"),
            (status(400, body=b"<Code>&secret;</Code>"), "answered 400"),
            (status(500), "answered 500"),
            (reset(), "closed the connection"),
        ],
    )
    async def test_a_fault_is_an_error(
        self, amazon: Amazon, heard: Witness, who: str, fault: Fault, words: str
    ) -> None:
        getattr(amazon, who).fault("*", fault)
        assert words in (await failure(amazon, heard)).reason
        assert not any("attacker" in name for name in amazon.hosts.connections)

    @pytest.mark.parametrize("who", ["sts", "api"])
    async def test_the_wait_of_a_429_is_kept(self, amazon: Amazon, heard: Witness, who: str) -> None:
        server = getattr(amazon, who)
        server.fault("*", status(429, headers={"Retry-After": "20"}))
        clock = Clock()
        source = amazon.credentials(monotonic=clock)
        with pytest.raises(Undecided) as caught:
            await source.credential(REGISTRY, NAME)
        assert caught.value.retry_after == 20.0
        asked = len(server.requests)
        clock.now += 19
        with pytest.raises(Undecided):
            await source.credential(REGISTRY, NAME)
        assert len(server.requests) == asked
        server.heal()
        clock.now += 2
        assert await source.credential(REGISTRY, NAME) is not None
        await source.aclose()

    async def test_a_failure_is_told_to_all_for_seconds_and_asked_about_once(
        self, amazon: Amazon, heard: Witness
    ) -> None:
        amazon.sts.web_identities.clear()
        clock = Clock()
        source = amazon.credentials(monotonic=clock)
        for _ in range(5):
            with pytest.raises(Undecided):
                await source.credential(REGISTRY, NAME)
        assert len(amazon.sts.requests) == 1
        clock.now += FAILURE_PAUSE_SECONDS + 0.1
        amazon.sts.web_identities.add(amazon.token)
        assert await source.credential(REGISTRY, NAME) is not None
        await source.aclose()

    async def test_closing_ends_what_is_under_way(self, amazon: Amazon) -> None:
        amazon.sts.fault("*", hang())
        source = amazon.credentials()
        waiting = asyncio.create_task(source.credential(REGISTRY, NAME))
        while not amazon.sts.requests:  # noqa: ASYNC110 - looking on from outside
            await asyncio.sleep(0.01)
        await source.aclose()
        with pytest.raises(Undecided):
            await waiting

"""Who a pod is at Entra ID: workload identity, identity binding, managed identity, with the unmodified SDK against
simulators under genuine names. No secret may be heard of (attack N11)."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme

from provider.azure import identity as identity_module
from provider.azure.explanations import AzureIdentityError
from provider.azure.identity import AzureIdentity, ManagedIdentity, WorkloadIdentity
from provider.azure.sdk import MAX_ANSWER_BYTES
from provider.credentials.azure import SCOPE
from provider.egress import ProxySettings
from tests.simulators.azure.cloud import REGISTRY, Cloud, cloud
from tests.simulators.azure.entra import (
    BINDING_AUDIENCE,
    CLIENT,
    REGISTRY_AUDIENCE,
    SUBJECT,
    TENANT,
    Federation,
    TokenProxySimulator,
    service_account_token,
)
from tests.simulators.azure.imds import MetadataSimulator
from tests.simulators.listener import Fault, body, delay, endless, gzipped, hang, raw, reset, status, truncate
from tests.simulators.stores import Clock
from tests.simulators.witness import Witness, witness

OTHER_TENANT = "00000000-1111-2222-3333-444444444444"
OTHER_CLIENT = "00000000-0000-0000-0000-00000000cafe"
HTML = {"Content-Type": "text/html"}
JSON = {"Content-Type": "application/json"}
NO_TOKEN = "answered 200 without a token that can be read"
VAULT = "https://vault.azure.net/.default"


def answer(**changes: object) -> bytes:
    """An answer of Entra ID, changed."""
    return json.dumps({"token_type": "Bearer", "expires_in": 3600, "access_token": "x" * 40, **changes}).encode()


@pytest.fixture
def heard() -> Iterator[Witness]:
    with witness() as listening:
        yield listening


@pytest.fixture
async def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Witness) -> AsyncIterator[Cloud]:
    async with cloud(tmp_path, monkeypatch) as running:
        yield running
    heard.check(running.secrets)


async def failure(heard: Witness, identity: AzureIdentity, scope: str = SCOPE) -> AzureIdentityError:
    """The error of asking for a token, which is noted for its looks."""
    with pytest.raises(AzureIdentityError) as caught:
        await identity.token(scope)
    heard.see(caught.value)
    return caught.value


class TestWorkloadIdentity:
    async def test_the_pod_is_who_the_webhook_says(self, azure: Cloud, heard: Witness) -> None:
        identity = azure.identity()
        token = await identity.token(SCOPE)
        assert azure.entra.tokens[token.value]["aud"] == REGISTRY_AUDIENCE
        assert azure.entra.tokens[token.value]["appid"] == CLIENT
        assert identity.tenant_id == TENANT
        assert 86000 < token.seconds <= 86400
        heard.see(token, identity)

    async def test_client_and_tenant_of_the_resource_come_before_those_of_the_pod(self, azure: Cloud) -> None:
        azure.entra.federations = {Federation(client=OTHER_CLIENT, tenant=OTHER_TENANT)}
        identity = azure.identity(WorkloadIdentity(OTHER_CLIENT, OTHER_TENANT))
        token = await identity.token(SCOPE)
        assert azure.entra.tokens[token.value]["appid"] == OTHER_CLIENT
        assert azure.entra.lines == [f"POST /{OTHER_TENANT}/oauth2/v2.0/token"]
        assert identity.tenant_id == OTHER_TENANT

    @pytest.mark.parametrize("host", ["login.microsoftonline.us", "login.chinacloudapi.cn"])
    async def test_a_sovereign_cloud_is_asked_where_the_webhook_says_so(self, azure: Cloud, host: str) -> None:
        azure.variables["AZURE_AUTHORITY_HOST"] = f"https://{host}/"
        await azure.identity().token(SCOPE)
        assert azure.hosts.connections == [f"{host}:443"]

    async def test_without_an_authority_it_is_the_public_cloud(self, azure: Cloud) -> None:
        del azure.variables["AZURE_AUTHORITY_HOST"]
        await azure.identity().token(SCOPE)
        assert azure.hosts.connections == ["login.microsoftonline.com:443"]

    async def test_all_who_wait_share_one_exchange(self, azure: Cloud) -> None:
        azure.entra.fault("*", delay(0.05))
        identity = azure.identity()
        tokens = await asyncio.gather(*(identity.token(SCOPE) for _ in range(20)))
        assert len({token.value for token in tokens}) == len(azure.entra.requests) == 1

    async def test_scopes_have_tokens_of_their_own(self, azure: Cloud) -> None:
        identity = azure.identity()
        registry, vault = await identity.token(SCOPE), await identity.token(VAULT)
        assert registry.value != vault.value
        assert azure.entra.tokens[vault.value]["aud"] == "https://vault.azure.net"

    async def test_a_token_is_kept_and_forgotten_when_told_to(self, azure: Cloud) -> None:
        identity = azure.identity()
        first = await identity.token(SCOPE)
        assert (await identity.token(SCOPE)).value == first.value
        identity.forget()
        assert (await identity.token(SCOPE)).value != first.value

    async def test_refusals_are_heeded_now_and_then(self, azure: Cloud) -> None:
        clock = Clock()
        identity = azure.identity(monotonic=clock)
        first = await identity.token(SCOPE)
        assert identity.refuse()
        second = await identity.token(SCOPE)
        assert second.value != first.value
        assert not identity.refuse()
        assert (await identity.token(SCOPE)).value == second.value
        clock.now += identity_module.REFUSAL_PAUSE_SECONDS
        assert identity.refuse()

    async def test_a_pod_without_the_webhook_is_told_of_the_label(self, azure: Cloud, heard: Witness) -> None:
        del azure.variables["AZURE_FEDERATED_TOKEN_FILE"]
        error = await failure(heard, azure.identity())
        assert "AZURE_FEDERATED_TOKEN_FILE is not set" in error.reason
        assert error.remediation is not None
        assert 'azure.workload.identity/use: "true"' in error.remediation

    @pytest.mark.parametrize(("name", "what"), [("AZURE_CLIENT_ID", "client"), ("AZURE_TENANT_ID", "tenant")])
    async def test_an_id_that_nobody_gave_is_named(self, azure: Cloud, heard: Witness, name: str, what: str) -> None:
        azure.variables[name] = ""
        error = await failure(heard, azure.identity())
        assert f"the {what} id" in error.reason
        assert error.remediation is not None
        assert f"azure.workload.identity/{what}-id" in error.remediation

    async def test_a_token_file_that_is_not_there_is_named_and_read_when_it_comes(
        self, azure: Cloud, heard: Witness
    ) -> None:
        azure.token_file.unlink()
        identity = azure.identity()
        error = await failure(heard, identity)
        assert "the service account's token cannot be read: No such file" in error.reason
        azure.put_token(service_account_token())
        assert await identity.token(SCOPE)

    @pytest.mark.parametrize("authority", ["http://login.microsoftonline.com", "https://", "https://[", "::"])
    async def test_an_authority_that_is_no_https_url_is_refused_without_repeating_it(
        self, azure: Cloud, heard: Witness, authority: str
    ) -> None:
        azure.variables["AZURE_AUTHORITY_HOST"] = authority
        await failure(heard, azure.identity())
        assert azure.entra.requests == []

    @pytest.mark.parametrize(
        ("code", "token", "federation", "words"),
        [
            (700211, {"issuer": "https://elsewhere.example/"}, None, "issuer"),
            (700213, {"subject": "system:serviceaccount:default:default"}, None, "subject"),
            (700212, {"audience": BINDING_AUDIENCE}, None, "audience"),
            (700024, {"lifetime": -60}, None, "within its time"),
            (700027, {"key": b"another cluster's"}, None, "signature"),
            (700016, {}, Federation(client=OTHER_CLIENT), "no identity of this client id"),
        ],
    )
    async def test_entras_codes_are_told_with_what_to_do(
        self,
        azure: Cloud,
        heard: Witness,
        code: int,
        token: dict[str, object],
        federation: Federation | None,
        words: str,
    ) -> None:
        azure.put_token(service_account_token(**token))  # type: ignore[arg-type]
        if federation is not None:
            azure.entra.federations = {federation}
        error = await failure(heard, azure.identity())
        assert f"AADSTS{code}" in error.reason
        assert "correlation id 5e2d1a4f-1111-2222-3333-c4b1a5b0f6aa" in error.reason
        assert words in error.reason
        assert error.remediation
        if code != 700016:  # what the token says of itself explains it
            assert error.found is not None
            assert str(token.get("subject", SUBJECT)) in error.found
        assert len(azure.entra.requests) == 1

    async def test_n11_an_entra_id_that_repeats_what_it_was_sent_is_not_quoted(
        self, azure: Cloud, heard: Witness
    ) -> None:
        azure.entra.echoing = True
        azure.entra.federations.clear()
        error = await failure(heard, azure.identity())
        assert "AADSTS700016" in error.reason

    @pytest.mark.parametrize(
        ("fault", "tries", "words"),
        [
            (status(500, body=b"{}"), 1, "answered 500"),
            (status(503, headers=HTML, body=b"<html>busy</html>"), 1, "answered 503"),
            (reset(), 2, "closed the connection"),
            (truncate(20), 2, "closed the connection"),
            (status(200, headers=HTML, body=b"<html>sign in</html>"), 1, NO_TOKEN),
            (status(200, headers=JSON, body=b"<html>"), 1, NO_TOKEN),
            (status(200, headers=JSON, body=b"{}"), 1, NO_TOKEN),
            (status(200, headers=JSON, body=b"[]"), 1, NO_TOKEN),
            (status(200, headers=JSON, body=b'{"access_token": "x"}'), 1, NO_TOKEN),
            (status(200, headers=JSON, body=b'{"access_token":' * 2000), 1, NO_TOKEN),
            (status(200, headers=JSON, body=answer(expires_in="soon")), 1, NO_TOKEN),
            (status(200, headers=JSON, body=answer(expires_in=-5)), 1, "gave a token that cannot be used"),
            (status(200, headers=JSON, body=answer(access_token=7)), 1, "gave a token that cannot be used"),
            (status(200, headers=JSON, body=answer(access_token="two\nlines")), 1, "gave a token that cannot be used"),
            (status(302, headers={"Location": "https://attacker.example/"}), 1, "answered 302"),
            (status(400, headers=JSON, body=b'{"error":"invalid_grant"}'), 1, "answered 400"),
            (status(429, headers={"Retry-After": "1"}), 1, "limits the request rate"),
            (gzipped(), 2, "cannot be read"),
            (body(b"x" * (MAX_ANSWER_BYTES + 1)), 2, "cannot be read"),
            (endless(), 2, "cannot be read"),
            (raw(b"SSH-2.0-OpenSSH\r\n\r\n"), 2, "cannot be read"),
        ],
    )
    async def test_a_fault_of_entra_is_an_error_that_names_it(
        self, azure: Cloud, heard: Witness, fault: Fault, tries: int, words: str
    ) -> None:
        azure.entra.fault("*", fault)
        error = await failure(heard, azure.identity())
        assert "Entra ID at login.microsoftonline.com" in error.reason
        assert words in error.reason
        assert len(azure.entra.requests) <= tries
        assert not any("attacker" in name for name in azure.hosts.connections)

    @pytest.mark.parametrize("code", [429, 503])
    @pytest.mark.parametrize("kind", [JSON, HTML, {}])
    @pytest.mark.parametrize(("field", "seconds"), [("30", 30.0), ("86400", 3600.0), ("soon", None)])
    async def test_the_wait_that_entra_asks_for_is_passed_on_and_not_slept_through(
        self, azure: Cloud, heard: Witness, code: int, kind: dict[str, str], field: str, seconds: float | None
    ) -> None:
        """Whatever it is written in: gateways answer in HTML."""
        azure.entra.fault("*", status(code, headers={"Retry-After": field, **kind}, body=b"<html>busy</html>"))
        error = await failure(heard, azure.identity())
        assert error.retry_after == seconds
        assert len(azure.entra.requests) == 1

    async def test_a_code_with_a_wait_says_both(self, azure: Cloud, heard: Witness) -> None:
        answer = json.dumps({"error": "temporarily_unavailable", "error_description": "AADSTS90033: busy"}).encode()
        fields = {"Retry-After": "5", "Content-Type": "application/json"}
        azure.entra.fault("*", status(429, headers=fields, body=answer))
        error = await failure(heard, azure.identity())
        assert ("AADSTS90033" in error.reason, error.retry_after) == (True, 5.0)

    async def test_an_entra_that_never_answers_holds_nobody_for_longer_than_the_limit(
        self, azure: Cloud, heard: Witness
    ) -> None:
        azure.entra.fault("*", hang())
        error = await failure(heard, azure.identity(token_seconds=0.3))
        assert "did not answer in time" in error.reason

    async def test_a_passing_fault_of_the_connection_is_tried_once_more(self, azure: Cloud) -> None:
        azure.entra.fault("*", reset(), times=1)
        assert await azure.identity().token(SCOPE)

    async def test_a_proxy_that_refuses_is_named(self, azure: Cloud, heard: Witness) -> None:
        azure.variables["AZURE_AUTHORITY_HOST"] = "https://login.elsewhere.example"
        error = await failure(heard, azure.identity())
        assert "behind a proxy that answered 403" in error.reason
        assert azure.hosts.strangers

    async def test_a_certificate_that_is_not_trusted_is_named(
        self, azure: Cloud, heard: Witness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        other = tmp_path / "other.pem"
        other.write_bytes(trustme.CA().cert_pem.bytes())
        monkeypatch.setenv("SSL_CERT_FILE", str(other))
        error = await failure(heard, azure.identity())
        assert "certificate that is not trusted" in error.reason
        assert azure.entra.requests == []

    async def test_a_name_that_does_not_resolve_is_named(self, azure: Cloud, heard: Witness) -> None:
        azure.variables["AZURE_AUTHORITY_HOST"] = "https://login.invalid"
        error = await failure(heard, azure.identity(proxies=ProxySettings()))
        assert "login.invalid" in error.reason

    @pytest.mark.parametrize("proxied", [False, True])
    @pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "localhost"])
    async def test_an_authority_on_a_forbidden_address_is_not_connected_to(
        self, azure: Cloud, heard: Witness, host: str, proxied: bool
    ) -> None:
        azure.variables["AZURE_AUTHORITY_HOST"] = f"https://{host}:{azure.entra.port}"
        error = await failure(heard, azure.identity(proxies=azure.proxies if proxied else ProxySettings()))
        assert "is not connected to" in error.reason
        assert azure.entra.requests == []
        assert azure.hosts.connections == []

    async def test_closing_ends_who_waits(self, azure: Cloud) -> None:
        azure.entra.fault("*", hang())
        identity = azure.identity()
        waiting = asyncio.create_task(identity.token(SCOPE))
        while not azure.entra.requests:  # noqa: ASYNC110 - looking on from outside
            await asyncio.sleep(0.01)
        await identity.aclose()
        with pytest.raises(Exception, match="cancelled"):
            await waiting


class TestIdentityBinding:
    @pytest.fixture
    async def proxy(
        self, azure: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> AsyncIterator[TokenProxySimulator]:
        """A pod whose webhook speaks of the cluster's token proxy, which has an authority of its own."""
        authority = trustme.CA()
        ca = tmp_path / "proxy-ca.crt"
        ca.write_bytes(authority.cert_pem.bytes())
        async with TokenProxySimulator(tls=authority) as simulator:
            for name, value in {
                "AZURE_KUBERNETES_TOKEN_PROXY": f"https://127.0.0.1:{simulator.port}{simulator.PREFIX}",
                "AZURE_KUBERNETES_SNI_NAME": simulator.SERVER_NAME,
                "AZURE_KUBERNETES_CA_FILE": str(ca),
            }.items():
                monkeypatch.setenv(name, value)
            azure.put_token(service_account_token(audience=BINDING_AUDIENCE))
            azure.acr._entra = simulator
            yield simulator

    async def test_the_clusters_proxy_is_asked_in_place_of_entra(
        self, azure: Cloud, proxy: TokenProxySimulator, heard: Witness
    ) -> None:
        token = await azure.identity().token(SCOPE)
        assert token.value in proxy.tokens
        assert proxy.lines == [f"POST {proxy.PREFIX}/{TENANT}/oauth2/v2.0/token"]
        assert proxy.server_names == [proxy.SERVER_NAME]
        assert azure.entra.requests == []
        heard.check(proxy.minted)

    async def test_a_registry_is_logged_in_to_with_its_token(self, azure: Cloud, proxy: TokenProxySimulator) -> None:
        found = await azure.credentials().credential(REGISTRY, "team/app")
        assert found is not None
        assert found.identity_token in azure.acr.minted

    async def test_a_refusal_names_the_proxy(self, azure: Cloud, proxy: TokenProxySimulator, heard: Witness) -> None:
        proxy.federations.clear()
        error = await failure(heard, azure.identity())
        assert "the token proxy of the identity binding says AADSTS700016" in error.reason

    async def test_a_proxy_of_another_authority_is_not_believed(
        self, azure: Cloud, proxy: TokenProxySimulator, heard: Witness
    ) -> None:
        Path(os.environ["AZURE_KUBERNETES_CA_FILE"]).write_bytes(trustme.CA().cert_pem.bytes())
        error = await failure(heard, azure.identity())
        assert "the token proxy of the identity binding" in error.reason
        assert proxy.requests == []

    @pytest.mark.parametrize(
        "variables",
        [
            {"AZURE_KUBERNETES_TOKEN_PROXY": "http://127.0.0.1:1/"},
            {"AZURE_KUBERNETES_TOKEN_PROXY": "https://user:password@127.0.0.1:1/"},
            {"AZURE_KUBERNETES_CA_DATA": "-----BEGIN CERTIFICATE-----"},
            {"AZURE_KUBERNETES_CA_FILE": "/nowhere"},
        ],
    )
    async def test_a_binding_that_is_set_up_wrongly_is_told_without_repeating_it(
        self,
        azure: Cloud,
        proxy: TokenProxySimulator,
        heard: Witness,
        monkeypatch: pytest.MonkeyPatch,
        variables: dict[str, str],
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        error = await failure(heard, azure.identity())
        assert "password" not in str(error)
        assert proxy.requests == []

    async def test_a_proxy_that_is_down_is_told(self, azure: Cloud, proxy: TokenProxySimulator, heard: Witness) -> None:
        proxy.fault("*", reset())
        error = await failure(heard, azure.identity())
        assert "the token proxy of the identity binding closed the connection" in error.reason


class TestManagedIdentity:
    @pytest.fixture
    async def node(self, azure: Cloud, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MetadataSimulator]:
        """The metadata service of the node; the pod has a workload identity besides."""
        async with MetadataSimulator(azure.entra) as simulator:
            monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", str(simulator.url))
            yield simulator

    async def test_the_node_is_asked_although_the_pod_has_a_workload_identity(
        self, azure: Cloud, node: MetadataSimulator
    ) -> None:
        token = await azure.identity(ManagedIdentity()).token(SCOPE)
        assert azure.entra.tokens[token.value]["aud"] == REGISTRY_AUDIENCE
        assert 86000 < token.seconds <= 86400
        assert azure.entra.requests == []
        [request] = node.requests
        assert (request.query["resource"], "client_id" in request.query) == (REGISTRY_AUDIENCE, False)

    async def test_a_user_assigned_identity_is_named(self, azure: Cloud, node: MetadataSimulator) -> None:
        node.identities.append(OTHER_CLIENT)
        token = await azure.identity(ManagedIdentity(OTHER_CLIENT)).token(SCOPE)
        assert azure.entra.tokens[token.value]["appid"] == OTHER_CLIENT

    async def test_a_registry_is_logged_in_to_with_its_token(self, azure: Cloud, node: MetadataSimulator) -> None:
        found = await azure.credentials(azure.identity(ManagedIdentity())).credential(REGISTRY, "team/app")
        assert found is not None
        assert found.identity_token in azure.acr.minted

    @pytest.mark.parametrize("client", [OTHER_CLIENT, ""])
    async def test_an_identity_that_the_node_has_not_is_told(
        self, azure: Cloud, node: MetadataSimulator, heard: Witness, client: str
    ) -> None:
        node.identities.clear()
        error = await failure(heard, azure.identity(ManagedIdentity(client)))
        assert error.reason == "the instance metadata service knows no such identity on this node"
        assert error.remediation is not None
        assert "scale set" in error.remediation
        azure.entra.mint("a", "b", "c")

    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            (status(200, headers=HTML, body=b"<html>proxy</html>"), NO_TOKEN),
            (status(200, headers=JSON, body=b"{}"), NO_TOKEN),
            (status(200, headers=JSON, body=b'{"access_token": "x", "expires_on": "soon"}'), ""),
            (status(403, body=b"unreachable network"), "answered 403"),
            (status(404), "answered 404"),
            (status(500), "answered 500"),
            (reset(), "closed the connection"),
            (status(302, headers={"Location": "http://attacker.example/"}), "answered 302"),
        ],
    )
    async def test_a_fault_of_the_node_is_an_error(
        self, azure: Cloud, node: MetadataSimulator, heard: Witness, fault: Fault, words: str
    ) -> None:
        node.fault("*", fault)
        error = await failure(heard, azure.identity(ManagedIdentity(), token_seconds=8))
        assert "the instance metadata service" in error.reason
        assert words in error.reason
        azure.entra.mint("a", "b", "c")

    async def test_a_node_that_asks_for_an_hour_holds_nobody_for_longer_than_the_limit(
        self, azure: Cloud, node: MetadataSimulator, heard: Witness
    ) -> None:
        node.fault("*", status(429, headers={"Retry-After": "3600"}))
        await failure(heard, azure.identity(ManagedIdentity(), token_seconds=0.3))
        azure.entra.mint("a", "b", "c")


def test_certificates_are_verified_by_what_the_system_trusts() -> None:
    """The simulators' authority is in SSL_CERT_FILE alone: that they answer proves that nothing turns TLS off."""
    assert ssl.create_default_context().verify_mode is ssl.CERT_REQUIRED

"""Profiles and settings of registries: what is refused, which URLs come out, who may have credentials."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from provider.egress import LOOPBACK_ALLOWED, PRIVATE_ALLOWED, PUBLIC_ONLY
from provider.errors import InvalidKey
from provider.oci import Digest, Reference
from provider.stores.profile import OrasStoreSettings, RegistryProfile, Repository

DIGEST = Digest("sha256", "a" * 64)


def repository(text: str, *profiles: RegistryProfile, plain_http: bool = False) -> Repository:
    return Repository.of(Reference.parse(text), OrasStoreSettings(profiles=profiles, plain_http=plain_http))


@pytest.mark.parametrize(
    "host", ["docker.io", "reg.example.test", "reg.example.test:5000", "localhost:5000", "[::1]:5000"]
)
def test_registry_hosts_are_accepted(host: str) -> None:
    assert RegistryProfile(host).host == host


@pytest.mark.parametrize(
    "host",
    [
        "",
        "Reg.example.test",
        "index.docker.io",
        "https://reg.example.test",
        "reg.example.test/x",
        "reg",
        "a b.c",
        "reg.example.test:0",
        "..",
        "reg.example.test:99999",
    ],
)
def test_what_is_no_registry_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="registry host"):
        RegistryProfile(host)


@pytest.mark.parametrize(
    "name", ["max_referrers", "timeout_seconds", "max_connections_per_host", "retry_backoff_seconds"]
)
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_that_are_not_positive_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        OrasStoreSettings(**{name: value})  # type: ignore[arg-type]


def test_two_profiles_for_one_registry_are_refused() -> None:
    with pytest.raises(ValueError, match="two profiles"):
        OrasStoreSettings(profiles=(RegistryProfile("a.test"), RegistryProfile("a.test", plain_http=True)))


def test_urls_are_made_of_checked_names() -> None:
    where = repository("reg.example.test:5000/team/app:v1")
    assert str(where.manifest_url("v1")) == "https://reg.example.test:5000/v2/team/app/manifests/v1"
    assert str(where.blob_url(DIGEST)) == f"https://reg.example.test:5000/v2/team/app/blobs/{DIGEST}"
    assert str(where.referrers_url(DIGEST, "a/b+c")).endswith(f"/referrers/{DIGEST}?artifactType=a%2Fb%2Bc")
    assert str(where.referrers_url(DIGEST, None)).endswith(f"/referrers/{DIGEST}")
    assert str(repository("nginx").origin) == "https://registry-1.docker.io"
    assert repository("nginx").pull_scope == "repository:library/nginx:pull"


@pytest.mark.parametrize(
    ("domain", "path"),
    [
        ("[::1::]", "a"),
        ("[:]", "a"),
        ("[ef14]:80", "a"),
        ("UPPER", "a"),
        ("reg.example.test", "../../admin"),
        ("reg.example.test", "a/../b"),
        ("reg.example.test", "a?b"),
        ("evil.test/x", "a"),
        ("user@reg.test", "a"),
        ("docker.io", "nginx"),
    ],
)
def test_a_reference_built_around_the_grammar_makes_no_url(domain: str, path: str) -> None:
    with pytest.raises(InvalidKey, match="REFERENCE_INVALID"):
        Repository.of(Reference(domain, path, "v1"), OrasStoreSettings())


def test_profiles_are_found_whatever_the_case_and_port_of_the_reference() -> None:
    profile = RegistryProfile("reg.example.test:5000", plain_http=True)
    assert str(repository("REG.example.test:5000/a/b", profile).origin) == "http://reg.example.test:5000"
    assert str(repository("reg.example.test/a/b", profile).origin) == "https://reg.example.test"
    assert str(repository("other.example.test/a/b", profile, plain_http=True).origin) == "http://other.example.test"


def test_where_a_registry_may_be_depends_on_who_named_it() -> None:
    assert repository("reg.example.test/a").rules == PRIVATE_ALLOWED
    assert repository("localhost:5000/a").rules == LOOPBACK_ALLOWED
    assert repository("[::1]:5000/a").rules == LOOPBACK_ALLOWED
    assert repository("reg.example.test/a", RegistryProfile("reg.example.test")).rules == LOOPBACK_ALLOWED


@pytest.mark.parametrize(
    ("text", "realm", "expected"),
    [
        ("nginx", "https://auth.docker.io/token", True),
        ("nginx", "https://registry-1.docker.io/token", True),
        ("nginx", "https://auth.docker.io.evil.org/token", False),
        ("registry.gitlab.com/a/b", "https://gitlab.com/jwt/auth", True),
        ("registry.gitlab.com/a/b", "https://auth.docker.io/token", False),
        ("reg.example.test/a", "https://reg.example.test:8443/token", True),
        ("reg.example.test/a", "https://auth.example.test/token", False),
        ("listed.example.test/a", "https://auth.example.test/token", True),
    ],
)
def test_n01_credentials_may_go_to_the_registrys_host_and_to_known_and_listed_ones(
    text: str, realm: str, expected: bool
) -> None:
    listed = RegistryProfile("listed.example.test", token_hosts=frozenset({"auth.example.test"}))
    assert repository(text, listed).may_have_credentials(URL(realm)) is expected


def test_n03_n04_other_hosts_are_foreign_and_have_to_be_public_unless_listed() -> None:
    profile = RegistryProfile(
        "reg.example.test", token_hosts=frozenset({"auth.test"}), redirect_hosts=frozenset({"storage.test"})
    )
    where = repository("reg.example.test/a", profile)
    for route, listed in ((where.token_route, "auth.test"), (where.redirect_route, "storage.test")):
        assert route(URL("https://reg.example.test:8443/")) == where.route
        assert (route(URL(f"https://{listed}/")).rules, route(URL(f"https://{listed}/")).foreign) == (
            LOOPBACK_ALLOWED,
            False,
        )
        assert (route(URL("https://other.test/")).rules, route(URL("https://other.test/")).foreign) == (
            PUBLIC_ONLY,
            True,
        )
    hub = repository("nginx").token_route(URL("https://auth.docker.io/token"))
    assert (hub.rules, hub.foreign) == (PUBLIC_ONLY, False)


@given(st.from_regex(r"\A(\[[0-9a-f:]{1,20}\]|[a-zA-Z0-9.-]{1,70})(:[0-9]{1,5})?/a(/b)?(:v1)?\Z"))
def test_n34_any_reference_that_can_be_parsed_leads_to_a_url_of_its_host_or_is_an_invalid_key(text: str) -> None:
    try:
        reference = Reference.parse(text)
        where = Repository.of(reference, OrasStoreSettings())
    except InvalidKey:
        return
    assert str(where.manifest_url("v1")).endswith(f"/v2/{reference.path}/manifests/v1")
    assert where.manifest_url("v1").origin() == where.origin

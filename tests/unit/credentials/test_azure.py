"""Which registries Entra's token is for (N07). What is done with it: tests/integration/test_azure_registry.py."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from provider.credentials.azure import RegistryHosts

AZURE = RegistryHosts()


@pytest.mark.parametrize(
    "domain",
    [
        "registry.azurecr.io",
        "r.azurecr.us",
        "contoso2026.azurecr.cn",
        "name-0a1b2c.azurecr.io",
        "registry.westeurope.geo.azurecr.io",
        "registry.usgovvirginia.geo.azurecr.us",
    ],
)
def test_registries_of_azure_are_covered(domain: str) -> None:
    assert AZURE.cover(domain)


@given(st.text(max_size=80) | st.from_regex(r"[a-z0-9.:@/\\-]{0,40}\.?azurecr\.(io|us|cn)[a-z0-9.:@/-]{0,20}"))
@example("registry.azurecr.io\n")
@example("registry.azurecr.io%00.attacker.example")
@example("registry\u3002azurecr.io")
@example("registry.azurecr.io.")
@example("réseau.azurecr.io")
def test_n07_whatever_is_covered_is_one_label_before_a_zone_of_azure(domain: str) -> None:
    if AZURE.cover(domain):
        assert re.fullmatch(r"[a-z0-9-]{1,63}(\.[a-z0-9]{1,40}\.geo)?\.azurecr\.(io|us|cn)", domain)
        assert not domain.startswith(("-", "xn--"))


@given(st.from_regex(r"[a-z0-9](-?[a-z0-9]){0,49}\.azurecr\.(io|us|cn)", fullmatch=True))
def test_every_registry_name_that_azure_gives_is_covered(domain: str) -> None:
    label = domain.partition(".")[0]
    assert AZURE.cover(domain) or label.startswith("xn--") or len(label) > 63


def test_endpoints_stand_in_place_of_the_names_of_azure() -> None:
    hosts = RegistryHosts.of(["registry.contoso.example", "*.registries.contoso.example", "local.example:5000"])
    assert hosts.cover("registry.contoso.example")
    assert hosts.cover("one.registries.contoso.example")
    assert hosts.cover("local.example:5000")
    assert not any(
        hosts.cover(domain)
        for domain in (
            "registry.azurecr.io",
            "registries.contoso.example",
            ".registries.contoso.example",
            "one.two.registries.contoso.example",
            "one.registries.contoso.example:443",
            "one.registries.contoso.example.attacker.example",
            "local.example",
            "local.example:5001",
            "*.registries.contoso.example",
        )
    )


@pytest.mark.parametrize(
    "endpoint",
    ["", "*", "*.", "*.io", "*.azurecr.io:443", "*.*.azurecr.io", "a.*.io", "Registry.azurecr.io", "https://a.example",
     "a.example/x", "a..example", "a.example:0", "a.example:port", "xn--a.example", "a b", "a.example\n"],
)  # fmt: skip
def test_an_endpoint_that_is_no_host_or_too_wide_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="is neither a host"):
        RegistryHosts.of([endpoint])

"""How a registry is reached: the settings of an oras store, the profile of one registry, the URLs of one repository.

Rules:
- Names are checked again before a URL is made of them: URL libraries collapse `..`, and a name is no place for that.
- `docker.io` is a name, not a host: its registry is registry-1.docker.io.
- A registry that the operator lists may be anywhere but link-local. One that only an image reference names may be
  private, and loopback only when the reference says so literally.

What does not belong here: requests (transport.py), secrets (credentials/).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Self
from urllib.parse import quote

from yarl import URL

from provider.egress import (
    LOOPBACK_ALLOWED,
    PRIVATE_ALLOWED,
    EgressRules,
    is_listed,
    is_loopback_literal,
    rules_for,
)
from provider.errors import InvalidKey
from provider.oci import Digest, Reference

DOCKER_HUB: Final = "docker.io"
DOCKER_HUB_HOST: Final = "registry-1.docker.io"

# Public registries whose token service is the same operator's under another name, so that nobody has to list it.
WELL_KNOWN_TOKEN_HOSTS: Final[Mapping[str, frozenset[str]]] = {
    DOCKER_HUB: frozenset({"auth.docker.io"}),
    "registry.gitlab.com": frozenset({"gitlab.com"}),
    "registry.digitalocean.com": frozenset({"api.digitalocean.com"}),
}


@dataclass(frozen=True, slots=True)
class RegistryProfile:
    """What the operator says of one registry.

    Attributes:
        host: registry as it stands in references, `host` or `host:port`; `docker.io` for Docker Hub.
        plain_http: speak http to it. Everything, credentials too, then goes in the clear.
        ca_bundle: PEM certificates trusted in place of the system's roots.
        ca_file: a file of such.
        client_certificate: PEM file of a client certificate, shown to this registry and the hosts listed here only.
        client_key: PEM file of its key; None when it is in the certificate's file.
        token_hosts: hosts that credentials for this registry may be sent to, besides its own.
        redirect_hosts: hosts that blobs may be fetched from although their address is private or loopback.

    Raises:
        ValueError: `host` is not a registry host.
    """

    host: str
    plain_http: bool = False
    ca_bundle: bytes = field(default=b"", repr=False)
    ca_file: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = field(default=None, repr=False)
    token_hosts: frozenset[str] = frozenset()
    redirect_hosts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        try:
            domain = Reference.parse(f"{self.host}/name/space:tag").domain
        except InvalidKey:
            domain = None
        if domain != self.host or self.host != self.host.lower():
            raise ValueError(f"{self.host!r} is not a registry host in lower case, such as registry.example.com:5000")

    @property
    def has_own_tls(self) -> bool:
        """It needs a TLS context of its own."""
        return bool(self.ca_bundle or self.ca_file or self.client_certificate or self.client_key)


@dataclass(frozen=True, slots=True)
class OrasStoreSettings:
    """Limits and registries of an oras store. Every number is positive.

    Attributes:
        plain_http: speak http to registries that have no profile (Ratify's useHttp).
        profiles: registries that need something said of them; at most one for a host.
        max_referrers: entries read from one list of referrers; an image rarely has ten.
        max_referrer_pages: pages of one list.
        timeout_seconds: one operation with its retries and tokens; for a list of referrers, one page of it. Longer than
            a request's deadline: the work goes on behind it.
        listing_timeout_seconds: all pages of one list, the consumer's own time not counted.
        attempt_timeout_seconds: one HTTP exchange, so that a dead connection leaves time for another try.
        connect_timeout_seconds: TCP connect and TLS handshake.
        retry_backoff_seconds: mean wait before the first retry; it doubles.
        max_connections_per_host: exchanges with one host side by side; Ratify's 100.
        throttle_wait_seconds: the longest pause that a host may ask for (429) and that is waited out; about a request's
            deadline, since nobody waits for an answer beyond it. After a longer one requests fail at once.

    Raises:
        ValueError: a number that is not positive, or two profiles for one host.
    """

    plain_http: bool = False
    profiles: tuple[RegistryProfile, ...] = ()
    max_referrers: int = 1000
    max_referrer_pages: int = 100
    timeout_seconds: float = 10.0
    listing_timeout_seconds: float = 30.0
    attempt_timeout_seconds: float = 4.0
    connect_timeout_seconds: float = 3.0
    retry_backoff_seconds: float = 0.1
    max_connections_per_host: int = 100
    throttle_wait_seconds: float = 4.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        hosts = [profile.host for profile in self.profiles]
        if len(set(hosts)) != len(hosts):
            raise ValueError("a registry has two profiles")

    def profile(self, domain: str) -> RegistryProfile | None:
        """The profile of a registry, None when the operator said nothing of it."""
        host = domain.lower()
        return next((profile for profile in self.profiles if profile.host == host), None)


class Route(NamedTuple):
    """Who a request goes to.

    Attributes:
        profile: profile of the registry on whose behalf it is sent.
        rules: egress rules for the host.
        foreign: the host is neither the registry's own nor one that the operator listed: no client certificate for it,
            and the system's roots are trusted beside the profile's.
    """

    profile: RegistryProfile
    rules: EgressRules
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository of one registry, and where it may be reached.

    Attributes:
        domain: registry as in references, lower case.
        path: repository path, checked.
        profile: what is known of the registry.
        rules: egress rules for the registry's own host.
        origin: scheme, host and port of the registry's API.
    """

    domain: str
    path: str
    profile: RegistryProfile
    rules: EgressRules
    origin: URL

    @classmethod
    def of(cls, reference: Reference, settings: OrasStoreSettings) -> Self:
        """The repository of a reference.

        Raises:
            InvalidKey: REFERENCE_INVALID, when the reference was built around its grammar, or its host is none.
        """
        # Reading the normal form again must give the same names; anything else was never parsed.
        again = Reference.parse(f"{reference.repository}:{reference.tag or 'latest'}")
        if (again.domain, again.path) != (reference.domain, reference.path):
            raise InvalidKey("REFERENCE_INVALID", "image reference is not in normal form", found=str(reference))
        domain = reference.domain.lower()
        listed = settings.profile(domain)
        try:
            profile = listed or RegistryProfile(domain, plain_http=settings.plain_http)
            origin = URL(f"{'http' if profile.plain_http else 'https'}://{_wire_host(domain)}")
            host = origin.raw_host or ""
            if domain.startswith("["):
                ipaddress.IPv6Address(host)
        except ValueError:  # what the grammar of references lets through and no URL can hold, such as [::1::]
            raise InvalidKey("REFERENCE_INVALID", "image reference has a bad registry host", found=domain) from None
        rules = LOOPBACK_ALLOWED if listed or is_loopback_literal(host) else PRIVATE_ALLOWED
        return cls(domain, reference.path, profile, rules, origin)

    @property
    def pull_scope(self) -> str:
        """The token scope for reading it (distribution token specification)."""
        return f"repository:{self.path}:pull"

    def may_have_credentials(self, url: URL) -> bool:
        """Whether credentials for this registry may be sent to a token service at `url`: on the registry's own host,
        on one that the operator listed, or on the known one of a public registry."""
        return url.raw_host == self.origin.raw_host or is_listed(
            url, self.profile.token_hosts | WELL_KNOWN_TOKEN_HOSTS.get(self.domain, frozenset())
        )

    @property
    def route(self) -> Route:
        """The way to the registry itself."""
        return Route(self.profile, self.rules)

    def token_route(self, url: URL) -> Route:
        """The way to a token realm that the registry named."""
        route = self._route(url, self.profile.token_hosts)
        return route._replace(foreign=route.foreign and not self.may_have_credentials(url))

    def redirect_route(self, url: URL) -> Route:
        """The way to a redirect target that the registry named."""
        return self._route(url, self.profile.redirect_hosts)

    def _route(self, url: URL, trusted_hosts: frozenset[str]) -> Route:
        if url.raw_host == self.origin.raw_host:
            return self.route
        return Route(self.profile, rules_for(url, trusted_hosts), foreign=not is_listed(url, trusted_hosts))

    def manifest_url(self, reference: Digest | str) -> URL:
        """URL of a manifest by digest or (checked) tag."""
        return self._url(f"manifests/{reference}")

    def blob_url(self, digest: Digest) -> URL:
        """URL of a blob."""
        return self._url(f"blobs/{digest}")

    def referrers_url(self, digest: Digest, artifact_type: str | None) -> URL:
        """URL of the first page of the referrers of a manifest."""
        query = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
        return self._url(f"referrers/{digest}{query}")

    def _url(self, rest: str) -> URL:
        return URL(f"{self.origin}/v2/{self.path}/{rest}", encoded=True)


def _wire_host(domain: str) -> str:
    return DOCKER_HUB_HOST if domain == DOCKER_HUB else domain

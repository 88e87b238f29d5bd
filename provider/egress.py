"""Outbound HTTP: which addresses may be connected to, which proxy leads there, and which TLS is spoken on the way.

Rules:
- The address is judged when the socket is made, after DNS, for names and IP literals alike: a name that answers with
  another address the second time (DNS rebinding) gains nothing.
- Link-local, metadata, unspecified and multicast addresses are never connected to, whoever names them, with one
  exception that no configuration and no foreign data can bring about: METADATA_ONLY, the rules of connections that ask
  a cloud's metadata service who we are (credentials/, azure/), by URLs of their own making and without
  redirects.
- What the operator's configuration or an image reference names may be private. What a registry, a redirect or a
  certificate names must be public, unless it is on the same host or the operator listed it. The caller knows who named
  the host and picks the rules; a connector has one set of rules, so that its pooled connections all obey them.
- An IPv6 address that embeds an IPv4 address is judged as the worse of the two.
- A proxy is named by the operator. Through a proxy only IP literals and localhost are judged here: the proxy resolves
  names and is then the place for egress rules.

What does not belong here: requests, retries, credentials of registries (stores/), what to fetch (verifiers/),
servers that flood (floods.py).
Sources: IANA special-purpose address registries, RFC 4291, RFC 6052 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo).
"""

from __future__ import annotations

import base64
import enum
import errno
import ipaddress
import os
import socket
import ssl
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, Self

from aiohttp import AddrInfoType, ClientConnectorCertificateError, ClientConnectorError, TCPConnector
from yarl import URL

from provider.errors import ConfigurationError
from provider.floods import FloodGuardedConnector

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

DNS_CACHE_SECONDS: Final = (
    10  # short: registries move behind their names; the address is judged at every connect anyway
)
KEEPALIVE_SECONDS: Final = 30.0  # below the idle limits of common load balancers (60 s), so that we close first
MAX_REMEMBERED_HOSTS: Final = 4096  # hosts whose spelling is not looked at again: every request asks
METADATA_ADDRESS: Final = "169.254.169.254"  # of the metadata service that Azure, AWS and Google have in common
MAX_CONNECTIONS: Final = 1000  # sockets of one connector; far below the usual file limit of 65536


class AddressClass(enum.IntEnum):
    """What kind of place an address is; greater is worse, which decides between an address and the one it embeds."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    MULTICAST = 3
    UNSPECIFIED = 4
    LINK_LOCAL = 5
    METADATA = 6


NEVER_ALLOWED: Final = frozenset(AddressClass) - {AddressClass.PUBLIC, AddressClass.PRIVATE, AddressClass.LOOPBACK}

_CLASSES: Final[tuple[tuple[AddressClass, tuple[str, ...]], ...]] = (
    (
        AddressClass.METADATA,  # instance metadata that is not link-local: AWS over IPv6, Azure, Alibaba, Oracle
        ("fd00:ec2::254/128", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32"),
    ),
    (AddressClass.LINK_LOCAL, ("169.254.0.0/16", "fe80::/10")),
    (AddressClass.UNSPECIFIED, ("0.0.0.0/8", "::/128", "255.255.255.255/32")),
    (AddressClass.MULTICAST, ("224.0.0.0/4", "ff00::/8")),
    (AddressClass.LOOPBACK, ("127.0.0.0/8", "::1/128")),
    (
        AddressClass.PRIVATE,
        (
            *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"),
            *("192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4"),
            *("fc00::/7", "fec0::/10", "64:ff9b:1::/48", "100::/64", "2001:db8::/32", "3fff::/20", "5f00::/16"),
        ),
    ),
)
_NETWORKS: Final[tuple[tuple[AddressClass, _IPNetwork], ...]] = tuple(
    (kind, ipaddress.ip_network(text)) for kind, texts in _CLASSES for text in texts
)
_LOW_32_BITS: Final = 0xFFFF_FFFF
_EMBEDDING: Final[tuple[tuple[ipaddress.IPv6Network, int, int], ...]] = tuple(
    # network, how far the IPv4 address is shifted left, what it is combined with (Teredo inverts the bits)
    (ipaddress.IPv6Network(network), shift, mask)
    for network, shift, mask in (
        ("::/96", 0, 0),  # IPv4-compatible, deprecated
        ("::ffff:0:0/96", 0, 0),  # IPv4-mapped
        ("::ffff:0:0:0/96", 0, 0),  # IPv4-translated, RFC 2765
        ("64:ff9b::/96", 0, 0),  # NAT64, well-known prefix
        ("64:ff9b:1::/48", 0, 0),  # NAT64, local prefix, in its /96 form
        ("2002::/16", 80, 0),  # 6to4
        ("2001::/32", 0, _LOW_32_BITS),  # Teredo: the client
        ("2001::/32", 64, 0),  # Teredo: the server
    )
)


class EgressRefusedError(OSError):
    """The address may not be connected to. Not worth a retry.

    The text never varies within one refusal of several addresses, so that aiohttp passes this error on as it is.

    Attributes:
        address: the address refused.
        kind: the class that it belongs to.
    """

    def __init__(self, address: str, kind: AddressClass) -> None:
        super().__init__(errno.EACCES, "connections to such an address are not allowed")
        self.address = address
        self.kind = kind


def classify(address: str | IPAddress) -> AddressClass:
    """The class of an address, the worst of it and of the IPv4 addresses that it embeds.

    Args:
        address: an IP address; a zone (`%eth0`) is ignored.

    Raises:
        ValueError: not an IP address.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0]) if isinstance(address, str) else address
    return max(_classify_alone(candidate) for candidate in (parsed, *_embedded(parsed)))


def _classify_alone(address: IPAddress) -> AddressClass:
    for kind, network in _NETWORKS:
        if address.version == network.version and address in network:
            return kind
    return AddressClass.PUBLIC


def _embedded(address: IPAddress) -> Iterator[ipaddress.IPv4Address]:
    if address.version == 4 or int(address) <= 1:  # :: and ::1 lie in the IPv4-compatible range and embed nothing
        return
    for network, shift, mask in _EMBEDDING:
        if address in network:
            yield ipaddress.IPv4Address(((int(address) >> shift) & _LOW_32_BITS) ^ mask)


@dataclass(frozen=True, slots=True)
class EgressRules:
    """Which addresses may be connected to.

    Attributes:
        allowed: classes of address; those of NEVER_ALLOWED are never among them.
        metadata_service: METADATA_ADDRESS too, although it is link-local.

    Raises:
        ValueError: a class that is never allowed (a programming error).
    """

    allowed: frozenset[AddressClass] = frozenset({AddressClass.PUBLIC})
    metadata_service: bool = False

    def __post_init__(self) -> None:
        if self.allowed & NEVER_ALLOWED:
            raise ValueError("link-local, metadata, multicast and unspecified addresses cannot be allowed")

    def check_address(self, address: str) -> None:
        """Judge an address that DNS gave.

        Raises:
            EgressRefusedError: it is of a class that is not allowed, or not an IP address at all.
        """
        if self.metadata_service and address == METADATA_ADDRESS:
            return
        try:
            kind = classify(address)
        except ValueError:
            kind = AddressClass.UNSPECIFIED
        if kind not in self.allowed:
            raise EgressRefusedError(address, kind)

    def check_host(self, host: str) -> None:
        """Judge the host of a URL as far as its text tells: IP literals and localhost. Other names pass here.

        Raises:
            EgressRefusedError: as check_address.
        """
        if self.metadata_service and host == METADATA_ADDRESS:
            return
        kind = _literal_class(host)
        if kind is not None and kind not in self.allowed:
            raise EgressRefusedError(host, kind)


PUBLIC_ONLY: Final = EgressRules()
PRIVATE_ALLOWED: Final = EgressRules(frozenset({AddressClass.PUBLIC, AddressClass.PRIVATE}))
LOOPBACK_ALLOWED: Final = EgressRules(PRIVATE_ALLOWED.allowed | {AddressClass.LOOPBACK})
METADATA_ONLY: Final = EgressRules(frozenset(), metadata_service=True)


def normalised_host(host: str) -> str:
    """A host as it is compared: lower case, without the brackets of an IPv6 literal and the dot of a rooted name."""
    return host.lower().removeprefix("[").removesuffix("]").removesuffix(".")


def is_loopback_literal(host: str) -> bool:
    """Whether the text alone says loopback: localhost, a name beneath it (RFC 6761), or such an IP literal."""
    return _literal_class(host) is AddressClass.LOOPBACK


@lru_cache(MAX_REMEMBERED_HOSTS)
def _literal_class(host: str) -> AddressClass | None:
    """The class that the text of a host gives away, None for a name that DNS has to explain."""
    name = normalised_host(host)
    if name == "localhost" or name.endswith(".localhost"):
        return AddressClass.LOOPBACK
    try:
        return classify(name)
    except ValueError:
        return None


def is_listed(url: URL, hosts: Collection[str]) -> bool:
    """Whether the URL's host is one of `hosts`: whole names, any case; `host:port` holds for that port alone."""
    if url.raw_host is None:
        return False
    name = normalised_host(url.raw_host)
    bracketed = f"[{name}]" if ":" in name else name
    candidates = {name, bracketed, f"{bracketed}:{url.port}"}
    return any(host.lower().removesuffix(".") in candidates for host in hosts)


def rules_for(url: URL, trusted_hosts: Collection[str]) -> EgressRules:
    """Rules for a URL that foreign data named: private or loopback only when its host is in `trusted_hosts`."""
    return LOOPBACK_ALLOWED if is_listed(url, trusted_hosts) else PUBLIC_ONLY


def guarded_connector(
    rules: EgressRules,
    *,
    tls: ssl.SSLContext | None = None,
    max_connections_per_host: int = 0,
    keepalive_seconds: float = KEEPALIVE_SECONDS,
) -> TCPConnector:
    """A connector that refuses, at connect time, every address outside the rules, and bears floods (floods.py).

    To be called in a running loop.

    Args:
        rules: what may be connected to; a refusal reaches the caller as the `os_error` of a ClientConnectorError.
        tls: context for https; None for the system's roots and TLS 1.2 or later.
        max_connections_per_host: sockets for one host and port; 0 for no limit but MAX_CONNECTIONS in all.
        keepalive_seconds: how long an idle connection is kept.
    """

    def guarded_socket(address_info: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = address_info
        rules.check_address(str(address[0]))
        return socket.socket(family=family, type=kind, proto=protocol)

    return FloodGuardedConnector(
        ssl=tls if tls is not None else tls_context(),
        limit=MAX_CONNECTIONS,
        limit_per_host=max_connections_per_host,
        keepalive_timeout=keepalive_seconds,
        ttl_dns_cache=DNS_CACHE_SECONDS,
        socket_factory=guarded_socket,
    )


def connection_problem(error: ClientConnectorError | ClientConnectorCertificateError) -> str:
    """Why a connection could not be made: words that follow the name of the host, and hold no address."""
    if isinstance(error, ClientConnectorCertificateError):
        verdict = getattr(error.certificate_error, "verify_message", "") or "it does not verify"
        return f"has a TLS certificate that is not trusted: {verdict}"
    cause = error.os_error
    if isinstance(cause, EgressRefusedError):
        kind = cause.kind.name.lower().replace("_", "-")
        return f"has an address of the class {kind}, which is not connected to"
    if isinstance(cause, socket.gaierror):
        return "cannot be found in DNS"
    if isinstance(cause, ssl.SSLError):
        return f"failed the TLS handshake: {(cause.reason or 'no reason given').replace('_', ' ').lower()}"
    # Not strerror: asyncio puts the address there, and who may name hosts need not learn where they are.
    return f"cannot be connected to: {os.strerror(cause.errno).lower() if cause.errno else 'no reason given'}"


def tls_context(
    *,
    ca_pem: bytes = b"",
    ca_file: Path | None = None,
    client_certificate: Path | None = None,
    client_key: Path | None = None,
    system_roots: bool | None = None,
) -> ssl.SSLContext:
    """A client context: TLS 1.2 or later, certificate and host name always checked.

    Args:
        ca_pem: certificates to trust.
        ca_file: file of certificates to trust.
        client_certificate: PEM file of the client's certificate and chain.
        client_key: PEM file of its key, not encrypted; None when it is in the certificate's file.
        system_roots: trust the system's roots too; by default only when no other certificates are given.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID, when a file cannot be read or holds no usable PEM.
    """
    # Not ssl.create_default_context: from Python 3.13 on it refuses private CAs that lack some extensions.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if system_roots if system_roots is not None else not (ca_pem or ca_file):
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if ca_file is not None:
        try:
            ca_pem = ca_pem + b"\n" + ca_file.read_bytes()
        except OSError as error:
            raise _certificate_error(f"the CA file {ca_file} cannot be read: {error.strerror}") from None
    if ca_pem:
        _trust(context, ca_pem)
    if client_certificate is not None:
        load_client_certificate(context, client_certificate, client_key)
    elif client_key is not None:
        raise _certificate_error("a client key is given without its certificate")
    return context


def _trust(context: ssl.SSLContext, pem: bytes) -> None:
    begun, ended = pem.count(b"-----BEGIN "), pem.count(b"-----END ")
    if begun != ended:  # OpenSSL would load what comes before the cut and say nothing
        raise _certificate_error("the CA bundle is cut off", found=f"{begun} PEM blocks begin, {ended} end")
    try:
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError):  # ValueError: not ASCII, or nothing in it
        raise _certificate_error("the CA bundle holds no usable PEM certificates") from None


def load_client_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Put a client certificate into a context, also into one in use: handshakes from then on show it.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID.
    """
    try:
        # A password callback, or OpenSSL would ask for one on the terminal and wait.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as error:
        problem = (error.reason or "not usable PEM").replace("_", " ").lower()
        raise _certificate_error(
            f"the client certificate {certificate} and its key cannot be used: {problem}"
        ) from None
    except OSError as error:
        raise _certificate_error(f"the client certificate {certificate} cannot be read: {error.strerror}") from None


def _certificate_error(reason: str, *, found: str | None = None) -> ConfigurationError:
    return ConfigurationError(
        "CERTIFICATE_INVALID",
        reason,
        found=found,
        remediation="Give complete PEM blocks: CA certificates, or a client certificate with its unencrypted key.",
    )


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy.

    Attributes:
        url: its address, without user information.
        headers: what to tell the proxy, its credentials among them; secret.
    """

    url: URL
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `http://[user:password@]host:port`; the scheme may be left out.

        Raises:
            ConfigurationError: CONFIG_INVALID. The text is not repeated: it may hold a password.
        """
        try:
            url = URL(text if "://" in text else f"http://{text}")
            if url.scheme not in ("http", "https") or not url.host:
                raise ValueError("neither http nor https")
            headers = {}
            if url.user is not None:
                pair = f"{url.user}:{url.password or ''}".encode()
                headers["Proxy-Authorization"] = f"Basic {base64.b64encode(pair).decode('ascii')}"
            return cls(url.origin(), headers)
        except ValueError:
            raise ConfigurationError(
                "CONFIG_INVALID",
                "a proxy of the environment is not a URL",
                expected="http://host:port",
                remediation="Set HTTP_PROXY and HTTPS_PROXY to http://host:port, or remove them.",
            ) from None


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Which proxy leads to which URL, after the environment variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY.

    Attributes:
        http: proxy for http URLs.
        https: proxy for https URLs.
        bypass: what is reached without a proxy: `*`, `host`, `.domain`, address, network in CIDR form, each with
            an optional `:port`. `host` covers the names beneath it too. Loopback is always reached directly.
    """

    http: Proxy | None = None
    https: Proxy | None = None
    bypass: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the variables, lower case before upper case as curl does.

        Raises:
            ConfigurationError: CONFIG_INVALID.
        """

        def value(name: str) -> str:
            return (environment.get(name.lower()) or environment.get(name) or "").strip()

        def proxy(name: str) -> Proxy | None:
            text = value(name) or value("ALL_PROXY")
            return Proxy.parse(text) if text else None

        bypass = tuple(value("NO_PROXY").replace(",", " ").lower().split())
        return cls(proxy("HTTP_PROXY"), proxy("HTTPS_PROXY"), bypass)

    def for_url(self, url: URL) -> Proxy | None:
        """The proxy for a URL, None for a direct connection."""
        proxy = self.https if url.scheme == "https" else self.http
        if proxy is None or url.raw_host is None:
            return None
        host = normalised_host(url.raw_host)
        if is_loopback_literal(host) or any(_bypasses(entry, host, url.port) for entry in self.bypass):
            return None
        return proxy


def _bypasses(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        pass
    name, colon, wanted_port = entry.rpartition(":")
    if colon and wanted_port.isdigit() and (":" not in name or name.endswith("]")):
        if int(wanted_port[:6]) != port:
            return False
        entry = name
    entry = entry.removeprefix("*")
    if entry.startswith("."):
        return host.endswith(entry)
    entry = normalised_host(entry)
    return host == entry or host.endswith(f".{entry}")

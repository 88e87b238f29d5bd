"""The limits of the server, each with its unit and the reason for its default.

Rules: times are seconds, sizes bytes, lengths characters. A value that makes no sense is refused when it is set, not
when it first hurts. What does not belong here: flags and environment variables (cli/).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from provider.errors import UsageError


def _require_positive(settings: Any, *may_be_zero: str) -> None:
    """Refuse numbers below or at zero in a dataclass of settings."""
    for name in settings.__dataclass_fields__:
        value = getattr(settings, name)
        if isinstance(value, int | float) and (value < 0 or (value == 0 and name not in may_be_zero)):
            raise UsageError("USAGE", f"{name} is not a positive number", found=f"{value:g}")


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a request may be at most.

    Attributes:
        max_body_bytes: bytes of the body. 1,000 keys of ordinary length take about 100 KiB; max_requests bodies of this
            size must fit into memory.
        max_keys: keys of one request. Gatekeeper sends the images of one object; the rest is room for odd templates.
        max_key_length: characters of one key. An image reference has at most 1,024 and a namespace 65 more; longer
            keys up to this limit get an error of their own, beyond it the request as a whole is refused.

    Raises:
        UsageError: a value is not positive.
    """

    max_body_bytes: int = 512 * 1024
    max_keys: int = 2000
    max_key_length: int = 4096

    def __post_init__(self) -> None:
        _require_positive(self)


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """Limits of one port.

    Attributes:
        host: address to listen on; None is every address, IPv4 and IPv6.
        port: TCP port; 0 takes a free one.
        keepalive_seconds: how long a connection may wait for its next request. Gatekeeper from 3.22 on closes idle ones
            after 90 s; if we did it first, a request could be on its way and would fail.
        handshake_seconds: time limit of the TLS handshake, from accept on. It takes some milliseconds.
        head_seconds: time limit of a request's head, from its first byte on; the same as Ratify's.
        write_seconds: how long a caller may take to read an answer.
        max_connections: open connections; beyond, the one that has been idle longest makes room.
        max_kept_connections: beyond this number of open connections every answer says `Connection: close`, because
            Gatekeeper up to 3.21 opens one for each call and never closes it. Newer ones keep 10 for each Provider and
            process, which makes 80 for three webhooks and an audit.
        max_connection_seconds: age at which a connection is closed with its next answer, so that trust in an old client
            certificate ends and new replicas get their share.
        allowed_client_names: names of which a client certificate must carry one, as DNS or URI in its subjectAltName
            or, without any of those, as common name. Empty allows every certificate that the client CA files lead to.

    Raises:
        UsageError: a value is not positive.
    """

    host: str | None = None
    port: int = 0
    keepalive_seconds: float = 95.0
    handshake_seconds: float = 5.0
    head_seconds: float = 5.0
    write_seconds: float = 10.0
    max_connections: int = 1024
    max_kept_connections: int = 128
    max_connection_seconds: float = 600.0
    allowed_client_names: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        _require_positive(self, "port")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Limits of answering.

    Attributes:
        verify_seconds: time from a verification's first byte to its answer: the Provider's timeout (4 s in the chart)
            less 0.2 s for the way there and back, the handshake and a busy processor included. The Provider's timeout
            in turn is less than the webhook's (5 s): see "Deadlines" in docs/operations.md for what happens otherwise.
        mutate_seconds: the same for mutation: 1 s less 0.2 s; its webhook has 2 s.
        requests: limits of the body.
        max_requests: requests answered at once; one more gets OVERLOADED at once. Three Gatekeeper webhooks with 100
            serving threads each make 300.
        max_unfinished_keys: keys under way at once, over all requests and beyond their deadlines; keys that do not fit
            are left out as OVERLOADED. One costs some 10 KiB.
        background_seconds: how long a key may go on after its request was answered without it. Work that takes longer
            than this will not be done at the next attempt either.
        trace_headers: request headers that a trace id is taken from, the first good one counts; of `traceparent`
            (W3C Trace Context) it is the trace-id part. Gatekeeper sends neither, a service mesh may.
        settle_seconds: how long a stopping server goes on accepting after it said that it is not ready: until every
            node's kube-proxy knows, Gatekeeper goes on calling, and a refused connection is a denied pod.
        drain_seconds: how long requests under way have to be answered after that; longer than verify_seconds.

    Raises:
        UsageError: a value is not positive.
    """

    verify_seconds: float = 3.8
    mutate_seconds: float = 0.8
    requests: RequestLimits = field(default_factory=RequestLimits)
    max_requests: int = 512
    max_unfinished_keys: int = 8192
    background_seconds: float = 60.0
    trace_headers: tuple[str, ...] = ("x-request-id", "traceparent")
    settle_seconds: float = 3.0
    drain_seconds: float = 6.0

    def __post_init__(self) -> None:
        _require_positive(self, "settle_seconds")

"""The revocation end points of the demo's authority: an OCSP responder and a CRL over plain HTTP on loopback.

Rules: answers are made for the moment of asking, by the clock that the caller gives; requests are bounded in bytes;
what cannot be read is answered with an OCSP error, never with `good`.

What does not belong here: making answers and lists (pki.py), asking for them (verifiers/).
Sources: RFC 6960 appendix A (OCSP over HTTP), RFC 5280 section 4.2.1.13.
"""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Final, Self
from urllib.parse import unquote

from aiohttp import web
from cryptography import x509

from provider.demo.pki import CertifiedKey, ocsp_answer, revocation_list
from provider.errors import UsageError

OCSP_PATH: Final = "/ocsp"
CRL_PATH: Final = "/authority.crl"
VALID_FOR: Final = timedelta(hours=1)  # from thisUpdate to nextUpdate
BACKDATED: Final = timedelta(minutes=1)  # thisUpdate lies this far back, for clocks that differ
MAX_REQUEST_BYTES: Final = 16 * 1024  # an OCSP request has about 100
MAX_REMEMBERED_REQUESTS: Final = 1000  # lines of `requests`
SHUTDOWN_SECONDS: Final = 1.0  # for requests under way when the context closes


class RevocationService:
    """Serves while its context is open. The port is known from the start of the context on, so certificates that name
    it are issued inside; `publish` then says whose they are.

    Attributes:
        requests: method and path of the latest requests.
    """

    def __init__(self, clock: Callable[[], datetime], *, address: str = "127.0.0.1", port: int = 0) -> None:
        """Prepare the service.

        Args:
            clock: the time of answers (aware).
            address: loopback address to listen on.
            port: TCP port; 0 takes a free one.
        """
        self.requests: deque[tuple[str, str]] = deque(maxlen=MAX_REMEMBERED_REQUESTS)
        self._clock = clock
        self._address = address
        self._port = port
        self._issuer: CertifiedKey | None = None
        self._known: tuple[x509.Certificate, ...] = ()
        self._revoked: dict[int, datetime] = {}
        self._runner: web.AppRunner | None = None

    @property
    def host(self) -> str:
        """`address:port`."""
        return f"{self._address}:{self._port}"

    @property
    def ocsp_url(self) -> str:
        """Where OCSP is answered."""
        return f"http://{self.host}{OCSP_PATH}"

    @property
    def crl_url(self) -> str:
        """Where the CRL is."""
        return f"http://{self.host}{CRL_PATH}"

    def publish(self, issuer: CertifiedKey, known: Sequence[x509.Certificate], revoked: Mapping[int, datetime]) -> None:
        """Answer for an issuer from now on.

        Args:
            issuer: the authority.
            known: certificates it issued.
            revoked: serial numbers of those it revoked, with the dates.
        """
        self._issuer, self._known, self._revoked = issuer, tuple(known), dict(revoked)

    async def __aenter__(self) -> Self:
        application = web.Application(client_max_size=MAX_REQUEST_BYTES)
        application.router.add_get(CRL_PATH, self._crl)
        application.router.add_post(OCSP_PATH, self._ocsp)
        application.router.add_get(OCSP_PATH + "/{request:.+}", self._ocsp)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._address, self._port).start()
        except OSError as error:
            await runner.cleanup()
            reason = f"{self.host} cannot be listened on: {error.strerror or error}"
            raise UsageError("USAGE", reason, remediation="Choose a port that is free.") from None
        self._runner = runner
        self._port = runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _crl(self, request: web.Request) -> web.Response:
        issuer, this_update = self._begin(request)
        body = revocation_list(issuer, self._revoked, this_update=this_update, next_update=this_update + VALID_FOR)
        return web.Response(body=body, content_type="application/pkix-crl")

    async def _ocsp(self, request: web.Request) -> web.Response:
        issuer, this_update = self._begin(request)
        body = ocsp_answer(
            issuer,
            await request.read() if request.method == "POST" else _from_path(request),
            known=self._known,
            revoked=self._revoked,
            this_update=this_update,
            next_update=this_update + VALID_FOR,
        )
        return web.Response(body=body, content_type="application/ocsp-response")

    def _begin(self, request: web.Request) -> tuple[CertifiedKey, datetime]:
        self.requests.append((request.method, request.path))
        if self._issuer is None:
            raise web.HTTPServiceUnavailable
        return self._issuer, self._clock().replace(microsecond=0) - BACKDATED


def _from_path(request: web.Request) -> bytes:
    """The request that a GET carries in its path; empty, and so malformed, when it cannot be read."""
    _, _, encoded = request.rel_url.raw_path.partition(OCSP_PATH + "/")
    try:
        return base64.b64decode(unquote(encoded), validate=True)
    except (ValueError, binascii.Error):
        return b""

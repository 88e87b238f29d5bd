"""Health and metrics: plain HTTP for the kubelet and for Prometheus, each on a port of its own.

    GET /healthz   200 while the event loop lives; the kubelet restarts the container otherwise
    GET /readyz    200 when requests can be answered, 503 with the reason when not; the Service sends none then
    GET /metrics   the metrics of telemetry.Metrics

Rules: no TLS and no names, because the kubelet and Prometheus have no certificates of ours; so nothing here tells more
than a state and numbers. Readiness is asked on each probe and never remembered.

What does not belong here: what makes the process ready (the caller of HealthServer knows).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aiohttp import web

from provider.gatekeeper.listener import Handler, Listener
from provider.gatekeeper.settings import ListenerSettings
from provider.telemetry import Metrics

HEALTH_PATH: Final = "/healthz"
READY_PATH: Final = "/readyz"
METRICS_PATH: Final = "/metrics"
_MAX_CONNECTIONS: Final = 64  # a kubelet and some Prometheus servers need a handful


def probe_settings(host: str | None = None, port: int = 0) -> ListenerSettings:
    """Limits of a port for probes."""
    return ListenerSettings(
        host=host,
        port=port,
        keepalive_seconds=30.0,
        max_connections=_MAX_CONNECTIONS,
        max_kept_connections=_MAX_CONNECTIONS,
    )


class _ProbeServer:
    """A port that answers GET at some paths."""

    def __init__(self, name: str, routes: dict[str, Handler], settings: ListenerSettings) -> None:
        self._routes = routes
        self._listener = Listener(name, self._handle, _plain_fault, settings=settings)

    @property
    def port(self) -> int:
        """The port listened on."""
        return self._listener.port

    async def start(self) -> None:
        """Listen.

        Raises:
            UsageError: USAGE, when the address cannot be listened on.
        """
        await self._listener.start()

    async def stop(self) -> None:
        """Close at once."""
        await self._listener.stop(0.0)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        route = self._routes.get(request.path)
        if route is None:
            return _plain(404, "not found")
        if request.method not in ("GET", "HEAD"):
            return _plain(405, "only GET is answered")
        return await route(request)


class HealthServer(_ProbeServer):
    """Liveness and readiness.

    Args:
        ready: None when requests can be answered, otherwise why not, in one line.
        settings: limits of the port.
    """

    def __init__(self, ready: Callable[[], str | None], settings: ListenerSettings) -> None:
        super().__init__("health", {HEALTH_PATH: self._health, READY_PATH: self._readiness}, settings)
        self._ready = ready

    async def _health(self, _request: web.BaseRequest) -> web.StreamResponse:
        return _plain(200, "ok")

    async def _readiness(self, _request: web.BaseRequest) -> web.StreamResponse:
        why_not = self._ready()
        return _plain(200, "ready") if why_not is None else _plain(503, f"not ready: {why_not}")


class MetricsServer(_ProbeServer):
    """The metrics of the process."""

    def __init__(self, metrics: Metrics, settings: ListenerSettings) -> None:
        super().__init__("metrics", {METRICS_PATH: self._metrics_page}, settings)
        self._metrics = metrics

    async def _metrics_page(self, request: web.BaseRequest) -> web.StreamResponse:
        body, content_type = self._metrics.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type, "Server": "countersign"})


def _plain(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n", headers={"Server": "countersign"})


def _plain_fault(status: int) -> web.Response:
    return _plain(status, "the request is not valid HTTP" if status < 500 else "internal error")

"""What `countersign serve` runs: everything put together, from the first port to the last answer.

    manifests, or custom resources -> assembly -> executor <- server <- Gatekeeper
    a serving certificate: files that are watched, or one that the rotation makes
    health and metrics on ports of their own

Rules: a bad configuration or certificate at run time never replaces a good one. At start a missing certificate ends the
command; a missing configuration leaves it running and not ready, because it may still arrive, and so does a cluster in
which the provider's own certificate cannot be made yet. SIGTERM and Ctrl-C stop gracefully; a second one at once.

What does not belong here: options and what they mean (serve.py).
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import structlog

from provider import __version__
from provider.assembly import Assembler
from provider.cli.prewarm_options import PrewarmFlags
from provider.cli.rotation_options import RotationFlags
from provider.configuration.manifests import watch
from provider.configuration.resources import ResourceSet
from provider.errors import ConfigurationError
from provider.executor import Executor, ExecutorSettings, RenderedVerdict, Snapshot
from provider.gatekeeper.probes import HealthServer, MetricsServer
from provider.gatekeeper.server import Server
from provider.gatekeeper.settings import ListenerSettings, ServerSettings
from provider.gatekeeper.tls import ServingTLS, TLSFiles
from provider.parts import Environment
from provider.prewarming import Prewarming, Recent, Recorder
from provider.telemetry import Metrics
from provider.tracing import Tracing, open_tracing

if TYPE_CHECKING:
    from lightkube import AsyncClient

    from provider.gatekeeper.rotation import CertificateRotation

_log = structlog.get_logger(__name__)

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it; a file system in memory on Linux


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Everything that `serve` was told.

    Attributes:
        config: the manifests; None for the custom resources of the cluster.
        namespace: the provider's own, in a cluster; None for the service account's.
        poll_seconds: between two looks at the manifests.
        tls: files with the serving certificate and client CAs; with `rotation` the client CAs count only.
        rotation: how the provider makes its serving certificate itself; None when it is given.
        rotation_folder: where that is written; None for a folder of its own, in memory.
        listener: limits of the port that Gatekeeper calls.
        server: limits of answering.
        executor: limits of deciding.
        health: limits of the port of the probes.
        metrics: the same of the metrics; None has none.
        trace_header: header that registries are told the trace id of a request in; None for none.
        otel: whether spans are made (tracing.py).
        prewarm: how the provider starts warm; None when it does not.
    """

    config: Path | None
    namespace: str | None
    poll_seconds: float
    tls: TLSFiles
    rotation: RotationFlags | None
    rotation_folder: Path | None
    listener: ListenerSettings
    server: ServerSettings
    executor: ExecutorSettings
    health: ListenerSettings
    metrics: ListenerSettings | None
    trace_header: str | None = None
    otel: bool = False
    prewarm: PrewarmFlags | None = None


class _Readiness:
    """Whether requests can be answered, as /readyz says it."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.server: Server | None = None
        self.prewarming: Prewarming | None = None

    def is_busy(self) -> bool:
        """Whether requests wait, or a registry keeps them waiting, or nobody will ask any more."""
        server = self.server
        return server is None or server.stopping or server.unfinished > 0 or self._executor.suspects_any

    def why_not(self) -> str | None:
        """None when they can, otherwise why not."""
        if self.server is None:
            return "there is no serving certificate yet"
        if self.server.stopping:
            return "stopping"
        if self._executor.snapshot is None:
            return "no good configuration is loaded"
        if self.prewarming is not None and self.prewarming.holds_up_readiness:
            return "a warm start is being prepared"
        return None


async def run(settings: ServeSettings) -> None:
    """Serve until told to stop.

    Raises:
        ConfigurationError: TLS_INVALID: the serving certificate or a client CA cannot be used.
        UsageError: a port cannot be listened on, there is no way to the cluster, settings of the rotation make no
            sense, or OpenTelemetry is not installed.
    """
    metrics = Metrics()
    executor = Executor(settings.executor)
    readiness = _Readiness(executor)
    async with AsyncExitStack() as stack:
        stop = asyncio.create_task(_stop_event().wait())
        stack.callback(stop.cancel)
        tracing = _tracing(settings, stack)
        client = _connect(settings, stack)
        rotation = _rotation(settings, client, metrics, stack)
        # A given certificate is read before a port is opened: what is wrong with it ends the command at once.
        tls = ServingTLS(settings.tls, metrics=metrics) if rotation is None else None
        environment = replace(
            Environment.from_variables(os.environ, kubernetes=client),
            trace_header=settings.trace_header,
            count_answer=metrics.count_registry_answer,
        )
        warm = _WarmStart(settings.prewarm, executor, client, readiness)
        assembler = Assembler(warm.use, environment=environment, metrics=metrics)
        for part in (executor, assembler):
            metrics.figures.read_from(part.figures)
        stack.push_async_callback(assembler.aclose)
        stack.push_async_callback(executor.aclose)
        await _open_probes(settings, readiness, metrics, stack)
        if rotation is not None:
            tls = await _first_certificate(rotation, settings, metrics, stop)
        if tls is None:
            return
        server = readiness.server = Server(
            warm.verifier,
            executor,
            listener=settings.listener,
            settings=settings.server,
            tls=tls,
            metrics=metrics,
            remembered=warm.verifier.remembered,
            tracing=tracing,
        )
        metrics.figures.read_from(server.figures)
        await server.start()
        source = _source(settings, client, _reporter(executor, metrics))
        await _serve(
            server,
            stop,
            (
                tls.watch(),
                _configure(source.sets, assembler, metrics),
                *source.beside(assembler),
                *warm.works(),
                *(() if rotation is None else (rotation.run(tls.reload),)),
            ),
            {
                "mtls": tls.demands_client_certificate,
                "config": str(settings.config or "cluster"),
                "certificate": "self-managed" if rotation is not None else "given",
            },
        )


class _WarmStart:
    """What a warm start has to do with the rest: nothing, unless it was asked for."""

    def __init__(
        self, flags: PrewarmFlags | None, executor: Executor, client: AsyncClient | None, readiness: _Readiness
    ) -> None:
        self._flags = flags
        self._executor = executor
        self._recent = Recent()
        self._prewarming: Prewarming | None = None
        self.verifier: Executor | Recorder[RenderedVerdict] = executor
        if flags is not None:
            self._prewarming = flags.prewarming(executor, client, self._recent, busy=readiness.is_busy)
            readiness.prewarming = self._prewarming
            if flags.snapshot is not None:
                self.verifier = Recorder(executor.verify, executor.remembered, self._recent)

    def use(self, snapshot: Snapshot) -> None:
        """A good configuration is there."""
        self._executor.use(snapshot)
        if self._prewarming is not None:
            self._prewarming.begin()

    def works(self) -> Iterator[Coroutine[Any, Any, NoReturn]]:
        """What is to be run."""
        if self._flags is not None and self._prewarming is not None:
            yield _for_ever(self._prewarming.run())
            if self._flags.snapshot is not None:
                yield self._recent.keep_saved(self._flags.snapshot, self._flags.settings.save_seconds)


async def _for_ever(work: Coroutine[Any, Any, None]) -> NoReturn:
    """Work whose end does not end the command."""
    await work
    while True:
        await asyncio.Event().wait()


async def _serve(
    server: Server,
    stop: asyncio.Task[bool],
    works: Sequence[Coroutine[Any, Any, None]],
    described: Mapping[str, object],
) -> None:
    """Work until the stop event comes or some work fails; then stop gracefully."""
    tasks = [asyncio.create_task(work) for work in works]
    _log.info("serving", version=__version__, port=server.port, **described)
    await asyncio.wait((stop, *tasks), return_when=asyncio.FIRST_COMPLETED)
    _log.info("stopping", unfinished=server.unfinished)
    await server.stop()
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _open_probes(settings: ServeSettings, readiness: _Readiness, metrics: Metrics, stack: AsyncExitStack) -> None:
    """Open the ports of the probes; before there is a certificate, or the kubelet would think that nothing lives."""
    ports: list[HealthServer | MetricsServer] = [HealthServer(readiness.why_not, settings.health)]
    if settings.metrics is not None:
        ports.append(MetricsServer(metrics, settings.metrics))
    for port in ports:
        await port.start()
        stack.push_async_callback(port.stop)


def _tracing(settings: ServeSettings, stack: AsyncExitStack) -> Tracing | None:
    if not settings.otel:
        return None
    tracing = open_tracing()
    stack.push_async_callback(tracing.aclose)
    return tracing


def _connect(settings: ServeSettings, stack: AsyncExitStack) -> AsyncClient | None:
    """A client of the cluster's API, if there is a use for it."""
    if settings.config is not None and settings.rotation is None:
        return None
    from provider.configuration.cluster import connect  # a quarter second, for those in need

    client = connect(settings.namespace)
    stack.push_async_callback(client.close)
    return client


def _rotation(
    settings: ServeSettings, client: AsyncClient | None, metrics: Metrics, stack: AsyncExitStack
) -> CertificateRotation | None:
    if settings.rotation is None or client is None:
        return None
    from provider.gatekeeper.rotation import CertificateRotation  # as above

    folder = settings.rotation_folder
    if folder is None:
        memory = str(SHARED_MEMORY) if os.access(SHARED_MEMORY, os.W_OK) else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="countersign-", dir=memory)))
    return CertificateRotation(client, settings.rotation.settings(client.namespace), folder=folder, metrics=metrics)


async def _first_certificate(
    rotation: CertificateRotation, settings: ServeSettings, metrics: Metrics, stop: asyncio.Task[bool]
) -> ServingTLS | None:
    """Wait until there is a certificate; None when it is time to stop before."""
    preparing = asyncio.create_task(rotation.prepare())
    await asyncio.wait((stop, preparing), return_when=asyncio.FIRST_COMPLETED)
    if not preparing.done():
        _log.info("stopping", unfinished=0)
        preparing.cancel()
        await asyncio.wait((preparing,))
        return None
    preparing.result()
    return ServingTLS(replace(settings.tls, certificate=rotation.file, key=rotation.file), metrics=metrics)


def _reporter(executor: Executor, metrics: Metrics) -> Callable[[ConfigurationError], None]:
    """Tells what is wrong with a configuration."""

    def report(error: ConfigurationError) -> None:
        metrics.configurations.labels("failed").inc()
        state = "the last good one stays" if executor.snapshot is not None else "there is no good configuration yet"
        for fault in error.faults or (error.detail,):
            _log.error(f"configuration fault, {state}", code=error.code, fault=str(fault))

    return report


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the configuration comes from.

    Attributes:
        sets: the sets of resources; an error that one led to is sent back.
        beside: what else is to be run while they are used.
    """

    sets: AsyncGenerator[ResourceSet, ConfigurationError | None]
    beside: Callable[[Assembler], Sequence[Coroutine[Any, Any, NoReturn]]] = lambda _: ()


def _source(
    settings: ServeSettings, client: AsyncClient | None, report: Callable[[ConfigurationError], None]
) -> _Source:
    if settings.config is not None or client is None:
        assert settings.config is not None  # noqa: S101 - without it there is a client
        return _Source(watch(settings.config, report, poll_seconds=settings.poll_seconds))
    from provider.configuration.cluster import ClusterConfiguration  # as above

    cluster = ClusterConfiguration(client, report)
    return _Source(cluster.watch(), lambda assembler: (cluster.write_status(lambda: assembler.key_providers),))


async def _configure(
    sets: AsyncGenerator[ResourceSet, ConfigurationError | None], assembler: Assembler, metrics: Metrics
) -> None:
    """Put each good configuration to use, for ever."""
    outcome: ConfigurationError | None = None
    async with aclosing(sets):
        while True:
            resources = await sets.asend(outcome)
            for warning in resources.warnings:
                _log.warning("configuration warning", fault=str(warning))
            try:
                generation = (await assembler.apply(resources)).generation
            except ConfigurationError as error:
                outcome = error
            else:
                outcome = None
                metrics.configurations.labels("loaded").inc()
                metrics.configuration_generation.set(generation)


def _stop_event() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one has its usual effect."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        loop.remove_signal_handler(number)
        event.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    return event

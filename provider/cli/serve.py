"""`countersign serve`: the provider that Gatekeeper calls.

    manifests -> assembly -> executor <- server <- Gatekeeper        health and metrics on ports of their own

Rules: a bad configuration or certificate at run time never replaces a good one; at start a missing certificate ends the
command, while a missing configuration leaves it running and not ready, because it may still arrive. SIGTERM and Ctrl-C
stop gracefully; a second one at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import structlog

from provider import __version__
from provider.assembly import Assembler, Environment
from provider.cli import EXIT_OK
from provider.cli.options import config_option, log_options, option
from provider.configuration.manifests import watch
from provider.errors import ConfigurationError, UsageError
from provider.executor import Executor, ExecutorSettings
from provider.gatekeeper.probes import HealthServer, MetricsServer, probe_settings
from provider.gatekeeper.server import Server
from provider.gatekeeper.settings import ListenerSettings, RequestLimits, ServerSettings
from provider.gatekeeper.tls import ServingTLS, TLSFiles
from provider.telemetry import LogFormat, Metrics, configure_logging

_log = structlog.get_logger(__name__)

_EXISTING = click.Path(path_type=Path)
_PORT = click.IntRange(0, 65535)
_SECONDS = click.FloatRange(min=0.01)


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Everything that `serve` was told."""

    config: Path
    poll_seconds: float
    tls: TLSFiles
    listener: ListenerSettings
    server: ServerSettings
    executor: ExecutorSettings
    health: ListenerSettings
    metrics: ListenerSettings


@click.command()
@config_option(required=True)
@option(
    "--host", default=None, metavar="ADDRESS", help="Address to listen on, for all ports.  [default: every address]"
)
# Not COUNTERSIGN_PORT: Kubernetes sets that to an address in every pod beside a Service called countersign.
@option("--port", type=_PORT, default=6001, envvar="COUNTERSIGN_LISTEN_PORT", help="Port that Gatekeeper calls.")
@option("--health-port", type=_PORT, default=9099, help="Port of /healthz and /readyz.")
@option("--metrics-port", type=_PORT, default=8888, help="Port of /metrics.")
@option(
    "--cert-dir", type=_EXISTING, metavar="DIR", help="Folder with tls.crt and tls.key, read again when they change."
)
@option("--cert-file", type=_EXISTING, metavar="FILE", help="Serving certificate, instead of --cert-dir.")
@option("--key-file", type=_EXISTING, metavar="FILE", help="Its private key.")
@option(
    "--client-ca-file",
    "client_cas",
    type=_EXISTING,
    multiple=True,
    metavar="FILE",
    help="CA of the clients (ca.crt of Gatekeeper's webhook secret). With it, a client certificate is demanded.",
)
@option(
    "--allowed-client-name",
    "client_names",
    multiple=True,
    metavar="NAME",
    help="Name that a client certificate must carry.  [default: any name]",
)
@option("--verify-deadline", type=_SECONDS, default=4.9, help="Seconds to answer in: the Provider's timeout less 0.1.")
@option("--mutate-deadline", type=_SECONDS, default=1.95, help="The same for the mutation Provider.")
@option("--mutation-keep-tag", is_flag=True, help="Mutate to repository:tag@digest instead of repository@digest.")
@option("--result-ttl", type=click.FloatRange(min=0.0), default=10.0, help="Seconds that a verdict is kept.")
@option("--result-cache-mib", type=click.IntRange(min=1), default=64, help="MiB of verdicts that are kept.")
@option(
    "--verification-timeout",
    type=_SECONDS,
    default=30.0,
    help="Seconds that one verification may take in the background.",
)
@option("--max-keys", type=click.IntRange(min=1), default=RequestLimits().max_keys, help="Keys of one request.")
@option(
    "--max-body-bytes",
    type=click.IntRange(min=1024),
    default=RequestLimits().max_body_bytes,
    help="Bytes of one request.",
)
@option("--config-poll-seconds", type=_SECONDS, default=2.0, help="Seconds between two looks at the manifests.")
@option(
    "--trace-header",
    "trace_headers",
    multiple=True,
    default=ServerSettings().trace_headers,
    metavar="NAME",
    help="Request header that a trace id is taken from.",
)
@log_options(level="info")
def serve(
    config: Path,
    host: str | None,
    port: int,
    health_port: int,
    metrics_port: int,
    cert_dir: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
    client_cas: Sequence[Path],
    client_names: Sequence[str],
    verify_deadline: float,
    mutate_deadline: float,
    mutation_keep_tag: bool,
    result_ttl: float,
    result_cache_mib: int,
    verification_timeout: float,
    max_keys: int,
    max_body_bytes: int,
    config_poll_seconds: float,
    trace_headers: Sequence[str],
    log_level: str,
    log_format: str,
) -> int:
    """Answer Gatekeeper: POST /ratify/gatekeeper/v1/verify and /ratify/gatekeeper/v1/mutate over TLS 1.3.

    The manifests and the TLS files are watched. Readiness (/readyz) is true once a good configuration is in use.

    \b
    Example:
      countersign serve --config /etc/countersign --cert-dir /usr/local/tls \\
          --client-ca-file /usr/local/tls/client-ca/ca.crt
    """
    configure_logging(log_level, LogFormat(log_format))
    settings = ServeSettings(
        config=config,
        poll_seconds=config_poll_seconds,
        tls=_tls_files(cert_dir, cert_file, key_file, client_cas),
        listener=ListenerSettings(host=host, port=port, allowed_client_names=frozenset(client_names)),
        server=ServerSettings(
            verify_seconds=verify_deadline,
            mutate_seconds=mutate_deadline,
            requests=RequestLimits(max_body_bytes=max_body_bytes, max_keys=max_keys),
            trace_headers=tuple(trace_headers),
            background_seconds=verification_timeout + 5.0,
        ),
        executor=ExecutorSettings(
            result_ttl_seconds=result_ttl,
            max_result_bytes=result_cache_mib * 1024 * 1024,
            verification_timeout_seconds=verification_timeout,
            keep_tag=mutation_keep_tag,
        ),
        health=probe_settings(host, health_port),
        metrics=probe_settings(host, metrics_port),
    )
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(run(settings))
    return EXIT_OK


def _tls_files(folder: Path | None, certificate: Path | None, key: Path | None, client_cas: Sequence[Path]) -> TLSFiles:
    if folder is not None and certificate is None and key is None:
        return TLSFiles.in_folder(folder, client_cas=client_cas)
    if folder is None and certificate is not None and key is not None:
        return TLSFiles(certificate, key, tuple(client_cas))
    raise UsageError(
        "USAGE",
        "Gatekeeper calls over TLS only, so a serving certificate is needed",
        expected="--cert-dir, or --cert-file with --key-file",
    )


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """uvloop where there is one: an idle TLS connection costs an eighth of the memory."""
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.Loop


async def run(settings: ServeSettings) -> None:
    """Serve until told to stop.

    Raises:
        ConfigurationError: TLS_INVALID: the serving certificate or a client CA cannot be used.
        UsageError: a port cannot be listened on.
    """
    metrics = Metrics()
    executor = Executor(settings.executor)
    tls = ServingTLS(settings.tls, metrics=metrics)
    server = Server(
        executor,
        executor,
        listener=settings.listener,
        settings=settings.server,
        tls=tls,
        metrics=metrics,
        remembered=executor.remembered,
    )

    def why_not_ready() -> str | None:
        if server.stopping:
            return "stopping"
        return None if executor.snapshot is not None else "no good configuration is loaded"

    async with AsyncExitStack() as stack:
        assembler = Assembler(executor.use, environment=Environment.from_variables(os.environ))
        stack.push_async_callback(assembler.aclose)
        stack.push_async_callback(executor.aclose)
        for port in (HealthServer(why_not_ready, settings.health), MetricsServer(metrics, settings.metrics)):
            await port.start()
            stack.push_async_callback(port.stop)
        await server.start()
        stopping = _stop_event()
        tasks = [asyncio.create_task(tls.watch()), asyncio.create_task(_configure(settings, assembler, metrics))]
        _log.info(
            "serving",
            version=__version__,
            port=server.port,
            mtls=tls.demands_client_certificate,
            config=str(settings.config),
        )
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait((stop, *tasks), return_when=asyncio.FIRST_COMPLETED)
        _log.info("stopping", unfinished=server.unfinished)
        await server.stop()
        for task in (stop, *tasks):
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result


async def _configure(settings: ServeSettings, assembler: Assembler, metrics: Metrics) -> None:
    """Put each good configuration to use, for ever."""
    generation = 0

    def report(error: ConfigurationError) -> None:
        metrics.configurations.labels("failed").inc()
        state = "the last good configuration stays" if generation else "there is no good configuration yet"
        for fault in error.faults or (error.detail,):
            _log.error(f"configuration fault, {state}", code=error.code, fault=str(fault))

    async for resources in watch(settings.config, report, poll_seconds=settings.poll_seconds):
        for warning in resources.warnings:
            _log.warning("configuration warning", fault=str(warning))
        try:
            generation = (await assembler.apply(resources)).generation
        except ConfigurationError as error:
            report(error)
        else:
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

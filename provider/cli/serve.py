"""`countersign serve`: the provider that Gatekeeper calls. Here are its options and what they mean.

Rules: options that contradict each other, or have no effect beside others, are refused with what to do instead. An
option with an environment variable is worth the same as on the command line.

RBAC that `--cluster` needs is listed in configuration/cluster.py, and what `--rotate-certs` needs in
gatekeeper/rotation.py. Stores with k8Secrets need, where those secrets are (the release's namespace, or with a
ClusterRole every one if tenants may have NamespacedStores with k8Secrets):

    secrets, serviceaccounts    get

What does not belong here: what is run (serving.py), options of the rotation (rotation_options.py) and of a warm start
(prewarm_options.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from provider.cli import EXIT_OK
from provider.cli.options import HeaderName, NumberRange, SectionedCommand, config_option, log_options, option
from provider.cli.prewarm_options import prewarm_flags, prewarm_options
from provider.cli.rotation_options import RotationFlags, rotation_flags, rotation_options
from provider.cli.serving import ServeSettings, run
from provider.errors import UsageError
from provider.executor import ExecutorSettings
from provider.gatekeeper.probes import probe_settings
from provider.gatekeeper.settings import ListenerSettings, RequestLimits, ServerSettings
from provider.gatekeeper.tls import TLSFiles
from provider.telemetry import LogFormat, configure_logging

_EXISTING = click.Path(path_type=Path)
_PORT = click.IntRange(0, 65535)
_SECONDS = NumberRange(min=0.01)

_CONFIGURATION = "What is trusted"
_PORTS = "Ports"
_GIVEN = "Serving certificate that is given"
_CALLERS = "Who may call"
_DEADLINES = "Time to answer in"
_LIMITS = "Limits"
_LOG = "Log"


@click.command(cls=SectionedCommand)
@config_option(required=False, section=_CONFIGURATION)
@option(
    "--config-poll-seconds",
    section=_CONFIGURATION,
    type=_SECONDS,
    default=2.0,
    help="Seconds between two looks at the manifests.",
)
@option(
    "--cluster",
    section=_CONFIGURATION,
    is_flag=True,
    help="Watch the custom resources of the cluster and write their status, instead of --config.",
)
@option(
    "--namespace",
    section=_CONFIGURATION,
    metavar="NAME",
    help="With --cluster or --rotate-certs: the namespace that the provider runs in.  [default: the service account's]",
)
@option(
    "--host",
    section=_PORTS,
    default=None,
    metavar="ADDRESS",
    help="Address to listen on, for all ports.  [default: every address]",
)
# Not COUNTERSIGN_PORT: Kubernetes sets that to an address in every pod beside a Service called countersign.
@option(
    "--port",
    section=_PORTS,
    type=_PORT,
    default=6001,
    envvar="COUNTERSIGN_LISTEN_PORT",
    help="Port that Gatekeeper calls.",
)
@option("--health-port", section=_PORTS, type=_PORT, default=9099, help="Port of /healthz and /readyz.")
@option("--metrics-port", section=_PORTS, type=_PORT, default=8888, help="Port of /metrics.")
@option("--no-metrics", section=_PORTS, is_flag=True, help="Open no port for metrics, instead of --metrics-port.")
@option(
    "--cert-dir",
    section=_GIVEN,
    type=_EXISTING,
    metavar="DIR",
    help="Folder with tls.crt and tls.key, as a Secret is mounted; read again when they change.",
)
@option(
    "--cert-file",
    section=_GIVEN,
    type=_EXISTING,
    metavar="FILE",
    help="Serving certificate and intermediates, PEM, instead of --cert-dir.",
)
@option("--key-file", section=_GIVEN, type=_EXISTING, metavar="FILE", help="Its private key, PEM, without passphrase.")
@rotation_options
@option(
    "--client-ca-file",
    "client_cas",
    section=_CALLERS,
    type=_EXISTING,
    multiple=True,
    metavar="FILE",
    help="CA of the clients (ca.crt of Gatekeeper's webhook secret). With it, a client certificate is demanded.",
)
@option(
    "--optional-client-ca-file",
    "optional_client_cas",
    section=_CALLERS,
    type=_EXISTING,
    multiple=True,
    metavar="FILE",
    help="The same, but the file may be missing at the start, as from an optional volume: until it is there anybody who"
    " reaches the port may ask. Once it was there it has to stay.",
)
@option(
    "--allowed-client-name",
    "client_names",
    section=_CALLERS,
    multiple=True,
    metavar="NAME",
    help="Name that a client certificate must carry.  [default: any name]",
)
@option(
    "--verify-deadline",
    section=_DEADLINES,
    type=_SECONDS,
    default=3.8,
    help="Seconds to answer in: 0.2 less than the Provider's timeout, which in turn is less than the webhook's (5 s)."
    " An answer that comes later than the webhook waits admits the pod, as long as its failurePolicy is Ignore.",
)
@option(
    "--mutate-deadline",
    section=_DEADLINES,
    type=_SECONDS,
    default=0.8,
    help="The same for the mutation Provider; its webhook has 2 s.",
)
@option(
    "--verification-timeout",
    section=_DEADLINES,
    type=_SECONDS,
    default=30.0,
    help="Seconds that one verification may take in the background.",
)
@option(
    "--mutation-keep-tag",
    section=_LIMITS,
    is_flag=True,
    help="Mutate to repository:tag@digest instead of repository@digest.",
)
@option(
    "--result-ttl",
    section=_LIMITS,
    type=NumberRange(min=0.0),
    default=10.0,
    help="Seconds that a verdict is kept.",
)
@option(
    "--result-cache-mib",
    section=_LIMITS,
    type=click.IntRange(min=1),
    default=64,
    help="MiB of verdicts that are kept.",
)
@option(
    "--max-keys",
    section=_LIMITS,
    type=click.IntRange(min=1),
    default=RequestLimits().max_keys,
    help="Keys of one request.",
)
@option(
    "--max-body-bytes",
    section=_LIMITS,
    type=click.IntRange(min=1024),
    default=RequestLimits().max_body_bytes,
    help="Bytes of one request.",
)
@prewarm_options
@option(
    "--trace-header",
    "trace_headers",
    section=_LOG,
    multiple=True,
    default=ServerSettings().trace_headers,
    metavar="NAME",
    help="Request header that a trace id is taken from.",
)
@option(
    "--registry-trace-header",
    section=_LOG,
    type=HeaderName(),
    metavar="NAME",
    help="Header that registries are told the trace id of a request in; traceparent is told as W3C Trace Context has"
    " it. Token services and blob storage are never told.",
)
@option(
    "--otel",
    section=_LOG,
    is_flag=True,
    help="Make OpenTelemetry spans and send them to a collector (OTLP over HTTP), as the variables OTEL_* say. Needs"
    " `countersign[otel]`.",
)
@log_options(level="info", section=_LOG)
def serve(
    config: Path | None,
    cluster: bool,
    namespace: str | None,
    host: str | None,
    port: int,
    health_port: int,
    metrics_port: int,
    no_metrics: bool,
    cert_dir: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
    client_cas: Sequence[Path],
    optional_client_cas: Sequence[Path],
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
    registry_trace_header: str | None,
    otel: bool,
    log_level: str,
    log_format: str,
    prewarm_file: Path | None,
    prewarm_pods: bool,
    prewarm_snapshot: Path | None,
    prewarm_concurrency: int,
    prewarm_wait_seconds: float,
    **rotation_values: Any,
) -> int:
    """Answer Gatekeeper: POST /ratify/gatekeeper/v1/verify and /ratify/gatekeeper/v1/mutate over TLS 1.3.

    \b
    It needs two things:
      what is trusted           --config with manifests, or --cluster
      a serving certificate     --cert-dir (or --cert-file and --key-file), or --rotate-certs

    Configuration and certificates are watched: a good change counts at once, a bad one changes nothing and is logged.
    Readiness (/readyz) is true once a good configuration is in use. Every option can be set by its environment
    variable.

    \b
    Examples:
      on a laptop, or with manifests in a volume:
        countersign serve --config /etc/countersign --cert-dir /usr/local/tls \\
            --client-ca-file /usr/local/client-ca/ca.crt
      in a cluster, with a certificate of cert-manager:
        countersign serve --cluster --cert-dir /usr/local/tls
      in a cluster, with a certificate that the provider makes and renews itself:
        countersign serve --cluster --rotate-certs --rotate-service ratify --rotate-secret ratify-tls \\
            --rotate-provider ratify-provider --rotate-provider ratify-mutation-provider
    """
    rotation = rotation_flags(**rotation_values)
    settings = ServeSettings(
        config=_manifests(config, cluster=cluster),
        namespace=_namespace(namespace, used=cluster or rotation is not None),
        poll_seconds=config_poll_seconds,
        tls=_tls_files(cert_dir, cert_file, key_file, client_cas, optional_client_cas, rotation=rotation),
        rotation=rotation,
        rotation_folder=cert_dir,
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
        metrics=None if _is_without_metrics(no_metrics) else probe_settings(host, metrics_port),
        trace_header=registry_trace_header,
        otel=otel,
        prewarm=prewarm_flags(
            cluster=cluster,
            prewarm_file=prewarm_file,
            prewarm_pods=prewarm_pods,
            prewarm_snapshot=prewarm_snapshot,
            prewarm_concurrency=prewarm_concurrency,
            prewarm_wait_seconds=prewarm_wait_seconds,
        ),
    )
    configure_logging(log_level, LogFormat(log_format))
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(run(settings))
    return EXIT_OK


def _manifests(config: Path | None, *, cluster: bool) -> Path | None:
    """The manifests, or None for the cluster's resources."""
    if cluster == (config is not None):
        problem = "--cluster and --config contradict each other" if cluster else "a configuration is needed"
        raise UsageError("USAGE", problem, expected="--config PATH for manifests, or --cluster for custom resources")
    return config


def _namespace(namespace: str | None, *, used: bool) -> str | None:
    if namespace is not None and not used:
        raise UsageError("USAGE", "--namespace has a meaning with --cluster or --rotate-certs only")
    return namespace


def _is_without_metrics(no_metrics: bool) -> bool:
    given = click.get_current_context().get_parameter_source("metrics_port")
    if no_metrics and given is not ParameterSource.DEFAULT:
        raise UsageError("USAGE", "--no-metrics and --metrics-port contradict each other", expected="one of them")
    return no_metrics


def _tls_files(
    folder: Path | None,
    certificate: Path | None,
    key: Path | None,
    client_cas: Sequence[Path],
    optional_client_cas: Sequence[Path],
    *,
    rotation: RotationFlags | None,
) -> TLSFiles:
    """The files of TLS. With a rotation the certificate's are those that it makes."""
    if rotation is not None and (certificate is not None or key is not None):
        raise UsageError(
            "USAGE",
            "--rotate-certs makes a serving certificate, and --cert-file and --key-file give one",
            expected="one of the two ways; --cert-dir beside --rotate-certs is where the certificate is put",
        )
    if rotation is not None or (folder is not None and certificate is None and key is None):
        return TLSFiles.in_folder(folder or Path(), client_cas=client_cas, optional_client_cas=optional_client_cas)
    if folder is None and certificate is not None and key is not None:
        return TLSFiles(certificate, key, tuple(client_cas), tuple(optional_client_cas))
    raise UsageError(
        "USAGE",
        "Gatekeeper calls over TLS only, so a serving certificate is needed"
        if folder is None
        else "--cert-dir and --cert-file or --key-file contradict each other",
        expected="--cert-dir, or --cert-file with --key-file, or --rotate-certs",
    )


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """uvloop where there is one: an idle TLS connection costs an eighth of the memory."""
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.Loop

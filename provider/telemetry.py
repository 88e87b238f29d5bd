"""Logs and metrics: how the process speaks to those who run it.

Rules:
- One log line is one event: JSON (Ratify's names: time, level, msg) or text. It goes to standard error; standard output
  belongs to commands. Records of libraries that use `logging` take the same way out.
- A text line stays one line whatever a registry or certificate put into it.
- A metric's labels take values from closed lists only. Image names, digests, keys and error texts are never labels: an
  attacker chooses them, and each new value would cost memory for ever.
- Ratify's metric names are kept where the meaning is the same, so that its dashboards go on working.

What does not belong here: which events are logged, when a metric moves, what is read off when a scraper asks
(figures.py), the HTTP listener that serves /metrics, spans (tracing.py).
"""

from __future__ import annotations

import enum
import logging
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from provider import __version__
from provider.errors import UsageError, printable
from provider.figures import Figures
from provider.progress import Stage

MAX_LOGGED_TEXT: Final = 4096  # characters of one value in a text line
LEVELS: Final = ("debug", "info", "warning", "error")

ENDPOINTS: Final = ("verify", "mutate", "other")  # other: a path that is neither
REQUEST_OUTCOMES: Final = ("complete", "partial", "failed", "rejected")
KEY_OUTCOMES: Final = ("succeeded", "refused", "invalid", "undecided")
VERIFIER_TYPES: Final = ("notation", "other")  # other: it came to no report of its own
# What is told of an answer of a registry, its token service or its storage: anything else is "other".
STATUSES: Final = frozenset(
    (*(200, 206, 301, 302, 303, 307, 308), *range(400, 407), 408, 410, 416, 429, *range(500, 505))
)
_BOTH: Final = ("endpoint", "outcome")

# Seconds. Warm answers take a few milliseconds, cold ones some round trips, and nothing may take five seconds.
_REQUEST_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0)
# Seconds. Weighing takes some microseconds, a signature a tenth of a millisecond, a registry that hangs half a minute.
_STAGE_BUCKETS: Final = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0),
    *(10.0, 30.0),
)
# Milliseconds, as Ratify v1 has them.
_RATIFY_VERIFY_BUCKETS: Final = (
    *(0, 10, 30, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1100, 1200, 1400, 1600, 1800),
    *(2000, 2300, 2600, 4000, 4400, 4900),
)
_RATIFY_MUTATE_BUCKETS: Final = _RATIFY_VERIFY_BUCKETS[:19]


class LogFormat(enum.Enum):
    """How a log line looks."""

    JSON = "json"
    TEXT = "text"


class _StandardError:
    """Standard error as it is at the time of writing, so that a replaced sys.stderr is honoured."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def configure_logging(
    level: str = "info", log_format: LogFormat = LogFormat.JSON, stream: TextIO | None = None
) -> None:
    """Set up structlog and `logging` for the whole process. To be called once, by the command line.

    Args:
        level: one of LEVELS; `warn` is taken for `warning`, as Ratify does.
        log_format: JSON for machines, text for people (coloured on a terminal).
        stream: where to write; None is standard error.

    Raises:
        UsageError: USAGE, for an unknown level.
    """
    name = {"warn": "warning"}.get(level.lower(), level.lower())
    if name not in LEVELS:
        raise UsageError("USAGE", "the log level is unknown", expected=", ".join(LEVELS), found=level)
    threshold = logging.getLevelNamesMapping()[name.upper()]
    output: Any = _StandardError() if stream is None else stream
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        _drop_absent,
    ]
    renderers: list[structlog.typing.Processor]
    if log_format is LogFormat.JSON:
        renderers = [structlog.processors.EventRenamer("msg"), structlog.processors.JSONRenderer()]
    else:
        colours = (stream or sys.stderr).isatty()
        console = structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=0, timestamp_key="time")
        renderers = [_one_line, console]
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    # Libraries tell at info what they do with every request; that is debugging, not operation.
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler], force=True)


def _drop_absent(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Leave out fields that have no value, as answers do."""
    return {key: value for key, value in event.items() if value is not None}


def _one_line(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep foreign text from forging lines of the text format; JSON escapes by itself.

    A traceback keeps its lines, indented, so that none of them can pass for the beginning of an event.
    """
    safe: dict[str, Any] = {}
    for key, value in event.items():
        if not isinstance(value, str):
            safe[key] = value
        elif key == "exception":
            safe[key] = "\n".join(f"    {printable(line, MAX_LOGGED_TEXT)}" for line in value.splitlines())
        else:
            safe[key] = printable(value, MAX_LOGGED_TEXT)
    return safe


@dataclass(frozen=True, slots=True)
class EndpointMetrics:
    """The metrics of one endpoint, their labels filled in once and not for each request.

    Attributes:
        requests: by outcome, one of REQUEST_OUTCOMES.
        keys: by outcome, one of KEY_OUTCOMES.
        deadline_misses: requests whose deadline came before all of their keys were done.
        seconds: durations of requests.
        ratify_milliseconds: the same under Ratify's name; None where Ratify has none.
    """

    requests: Mapping[str, Counter]
    keys: Mapping[str, Counter]
    deadline_misses: Counter
    seconds: Histogram
    ratify_milliseconds: Histogram | None

    def observe(self, seconds: float) -> None:
        """Note the duration of one request."""
        self.seconds.observe(seconds)
        if self.ratify_milliseconds is not None:
            self.ratify_milliseconds.observe(seconds * 1000)


class StageTimes:
    """Times the stages of one request: a progress.Observer that keeps nothing.

    Args:
        metrics: where times go.
        trace_id: the request's.
        stage: the stage that this is; None for the request itself.
    """

    __slots__ = ("_facts", "_metrics", "_stage", "trace_id")

    traceparent = ""

    def __init__(self, metrics: Metrics, trace_id: str, stage: Stage | None = None) -> None:
        self.trace_id = trace_id
        self._metrics = metrics
        self._stage = stage
        self._facts: dict[str, str | bool | int] | None = None

    def begin(self, stage: Stage) -> StageTimes:
        return StageTimes(self._metrics, self.trace_id, stage)

    def note(self, name: str, value: str | bool | int) -> None:
        if self._facts is None:
            self._facts = {}
        self._facts[name] = value

    def end(self, seconds: float) -> None:
        if self._stage is not None:
            self._metrics.observe_stage(self._stage, seconds, self._facts or {})


class Metrics:
    """Every metric of the process, in a registry of its own.

    Label values: `endpoint` is one of ENDPOINTS; `action`, `outcome`, `reason` and `result` are the words listed at
    each metric; `error` is a code of errors.CODES; `stage` one of progress.Stage; `verifier` one of VERIFIER_TYPES;
    `status_code` one of STATUSES or `other`; `provider` is a name that the command line gives, or that of a
    cluster-wide KeyManagementProvider in use.

    Attributes:
        registry: for reading single values, as tests do.
        figures: what is read off when a scraper asks.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        Info("countersign_build", "Version of Countersign.", registry=self.registry).info({"version": __version__})

        self.figures = Figures()
        self.registry.register(self.figures)
        self.system_errors = self._counter(
            "ratify_system_error_count", "Causes given in system errors, by code of docs/errors.md.", "error"
        )
        self._requests = self._counter(
            "countersign_requests", "Requests answered: complete, partial (keys missing), failed, rejected.", *_BOTH
        )
        self._keys = self._counter(
            "countersign_keys", "Keys answered: succeeded, refused, invalid, undecided (left out, or no value).", *_BOTH
        )
        self._deadline_misses = self._counter(
            "countersign_deadline_misses",
            "Requests whose deadline came before all of their keys were done.",
            "endpoint",
        )
        self._request_seconds = self._histogram(
            "countersign_request_duration_seconds",
            "From the first byte of a request until its answer is ready.",
            _REQUEST_BUCKETS,
            "endpoint",
        )
        self._ratify_durations = {
            "verify": self._histogram(
                "ratify_verification_request", "Duration of a verification in milliseconds.", _RATIFY_VERIFY_BUCKETS
            ),
            "mutate": self._histogram(
                "ratify_mutation_request", "Duration of a mutation in milliseconds.", _RATIFY_MUTATE_BUCKETS
            ),
        }
        self._endpoints = {name: self._bind(name) for name in ENDPOINTS}
        self._stage_seconds = self._histogram(
            "countersign_stage_duration_seconds",
            "What the time of a decision goes into, retries and waiting included. Stages: key (one key of one request),"
            " resolve, referrers and fetch (requests to the registry), token (its token service), credentials (what a"
            " cloud gives first), artifact (one verifier's look at one artifact, with fetch and verify), verify (with"
            " revocation), revocation (OCSP answers and CRLs), policy.",
            _STAGE_BUCKETS,
            "stage",
        )
        self._stages = {stage: self._stage_seconds.labels(stage.value) for stage in Stage}
        self._verifier_milliseconds = self._histogram(
            "ratify_verifier_duration",
            "One verifier's look at one artifact in milliseconds, by type of the verifier and whether it succeeded.",
            _RATIFY_VERIFY_BUCKETS,
            *("verifier", "success"),
        )
        self._verifiers = {
            (verifier, success): self._verifier_milliseconds.labels(verifier, str(success).lower())
            for verifier in VERIFIER_TYPES
            for success in (True, False)
        }
        self._registry_requests = self._counter(
            "ratify_registry_request_count",
            "Answers of registries, their token services and their storage, by status; none: there was no answer.",
            "status_code",
        )
        self.requests_in_flight = self._gauge("countersign_requests_in_flight", "Requests being answered now.")
        self.unfinished_keys = self._gauge(
            "countersign_unfinished_keys", "Keys under way now, those whose request was already answered included."
        )
        self.connections = self._gauge("countersign_connections", "Connections of the verification port open now.")
        self.connections_ended = self._counter(
            "countersign_connections_ended",
            "Connections ended by us before their time: slow_head, slow_reader, evicted (idle, over the limit), full.",
            "reason",
        )
        self.tls_handshake_failures = self._counter(
            "countersign_tls_handshake_failures",
            "TLS handshakes that failed, by reason; the words are in gatekeeper/tls.py.",
            "reason",
        )
        self.tls_reloads = self._counter(
            "countersign_tls_reloads",
            "Changes of the TLS files: loaded, or failed (the last good ones stay).",
            "result",
        )
        self.configurations = self._counter(
            "countersign_configurations",
            "Configurations that were read: loaded, or failed (the last good one stays).",
            "result",
        )
        self.configuration_generation = self._gauge(
            "countersign_configuration_generation", "Generation of the configuration in use; 0 before the first."
        )
        self.key_material_seen = self._gauge(
            "countersign_key_material_seen_timestamp_seconds",
            "Unix time at which the oldest key material of a KeyManagementProvider was last seen to be so.",
            "provider",
        )
        self.key_material_complete = self._gauge(
            "countersign_key_material_complete",
            "Whether a KeyManagementProvider of a key service holds all that it should (1), or lacks something (0).",
            "provider",
        )
        self.tls_not_after = self._gauge(
            "countersign_tls_certificate_not_after_seconds", "Unix time at which the serving certificate expires."
        )
        self.ca_not_after = self._gauge(
            "countersign_tls_ca_not_after_seconds",
            "Unix time at which the authority of the self-managed serving certificate expires.",
        )
        self.certificate_rotation = self._counter(
            "countersign_certificate_rotation",
            "What was done for the self-managed serving certificate. Actions: look, create, restore, issue, prepare,"
            " promote, retain, drop (the Secret), bundle (caBundle), provider (made again), serve;"
            " outcomes: done, conflict (somebody was quicker), failed.",
            *("action", "outcome"),
        )
        self.provider_present = self._gauge(
            "countersign_provider_present",
            "Whether a Provider object exists (1) or is missing (0), by the names given on the command line.",
            "provider",
        )

    def endpoint(self, name: str) -> EndpointMetrics:
        """The metrics of one endpoint, one of ENDPOINTS."""
        return self._endpoints[name]

    def observe_stage(self, stage: Stage, seconds: float, facts: Mapping[str, str | bool | int]) -> None:
        """Note the duration of one stage.

        Args:
            stage: the stage.
            seconds: how long it took.
            facts: of ARTIFACT `verifier` and `success` count.
        """
        self._stages[stage].observe(seconds)
        if stage is Stage.ARTIFACT:
            verifier = facts.get("verifier")
            known = str(verifier) if verifier in VERIFIER_TYPES else "other"
            self._verifiers[known, facts.get("success") is True].observe(seconds * 1000)

    def count_registry_answer(self, status: int | None) -> None:
        """Count an answer of a registry; None when there was none."""
        told = "none" if status is None else str(status) if status in STATUSES else "other"
        self._registry_requests.labels(told).inc()

    def forget_key_provider(self, name: str) -> None:
        """Show a key provider no more; one that was never shown is none."""
        for gauge in (self.key_material_seen, self.key_material_complete):
            with suppress(KeyError):
                gauge.remove(name)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics if `accept`, the scraper's header, asks for it."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _bind(self, endpoint: str) -> EndpointMetrics:
        return EndpointMetrics(
            requests={outcome: self._requests.labels(endpoint, outcome) for outcome in REQUEST_OUTCOMES},
            keys={outcome: self._keys.labels(endpoint, outcome) for outcome in KEY_OUTCOMES},
            deadline_misses=self._deadline_misses.labels(endpoint),
            seconds=self._request_seconds.labels(endpoint),
            ratify_milliseconds=self._ratify_durations.get(endpoint),
        )

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(name, documentation, labels, registry=self.registry)

    def _histogram(self, name: str, documentation: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, documentation, labels, buckets=buckets, registry=self.registry)

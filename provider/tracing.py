"""OpenTelemetry spans of requests, keys and stages, for who has a collector: `countersign[otel]` and `serve --otel`.

    verify                       one request; child of the caller's span if it sent a traceparent
    `-- key                      one image that was not at hand
        |-- resolve, referrers
        `-- artifact -- fetch, verify -- revocation
        `-- policy

Rules:
- The packages of OpenTelemetry are imported here, when tracing is asked for, and nowhere else: they are no dependency.
- Where spans go, how many are taken and what the service is called say OpenTelemetry's own variables (OTEL_*).
- Shared work is in the trace of the request that started it; a key that waits for another's work names that trace.
- What is kept costs no span: of a request whose verdicts are at hand there is the request's alone.
- A span says what the log says, and no secret. A collector that hangs loses spans and holds up nothing.

What does not belong here: what a stage is (progress.py), when one begins.
Sources: W3C Trace Context; OpenTelemetry specification, "Trace SDK".
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from provider import __version__
from provider.errors import UsageError
from provider.progress import Observer, Stage

SERVICE: Final = "countersign"  # unless OTEL_SERVICE_NAME says otherwise


class Tracing:
    """Begins a span for each request.

    Args:
        provider: an opentelemetry.sdk.trace.TracerProvider.

    Raises:
        UsageError: USAGE, when OpenTelemetry is not installed.
    """

    def __init__(self, provider: Any) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise _not_installed() from None
        self._provider = provider
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer(SERVICE, __version__)

    def begin(self, endpoint: str, headers: Mapping[str, str]) -> RequestSpan:
        """A request of an endpoint begins, with these header fields."""
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        parent = self._propagator.extract(carrier)  # what is malformed counts as absent
        span = self._tracer.start_span(endpoint, context=parent, kind=self._trace.SpanKind.SERVER)
        return RequestSpan(self._trace, self._tracer, span)

    async def aclose(self) -> None:
        """Hand over the spans that wait; OpenTelemetry limits the time of that."""
        await asyncio.to_thread(self._provider.shutdown)


class RequestSpan:
    """The span of one request, before it is known what else watches the request.

    Attributes:
        trace_id: of the span's trace, 32 hex digits; the caller's if it sent a traceparent.
    """

    def __init__(self, trace: Any, tracer: Any, span: Any) -> None:
        self.trace_id = f"{span.get_span_context().trace_id:032x}"
        self._trace = trace
        self._tracer = tracer
        self._span = span

    def beside(self, observer: Observer) -> Observer:
        """Watches for this span and for `observer`; ending it ends the span."""
        self._span.set_attribute("countersign.trace_id", observer.trace_id)
        return _Spans(observer, self._trace, self._tracer, self._span)


class _Spans:
    """A progress.Observer that passes everything on to another and makes spans of it."""

    __slots__ = ("_inner", "_span", "_trace", "_tracer")

    def __init__(self, inner: Observer, trace: Any, tracer: Any, span: Any) -> None:
        self._inner = inner
        self._trace = trace
        self._tracer = tracer
        self._span = span

    @property
    def trace_id(self) -> str:
        return self._inner.trace_id

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def begin(self, stage: Stage) -> _Spans:
        span = self._tracer.start_span(stage.value, context=self._trace.set_span_in_context(self._span))
        return _Spans(self._inner.begin(stage), self._trace, self._tracer, span)

    def note(self, name: str, value: str | bool | int) -> None:
        self._inner.note(name, value)
        self._span.set_attribute(f"countersign.{name}", value)

    def end(self, seconds: float) -> None:
        self._inner.end(seconds)
        self._span.end()


def open_tracing() -> Tracing:
    """Tracing to an OTLP collector over HTTP, as OpenTelemetry's variables say.

    Raises:
        UsageError: USAGE, when OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise _not_installed() from None
    # Variables win over what is given here, except for the name: it is given only when they have none.
    resource = Resource.create({"service.version": __version__})
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": SERVICE}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def _not_installed() -> UsageError:
    return UsageError("USAGE", "tracing needs OpenTelemetry, which is not installed", expected="countersign[otel]")

"""Figures that are read off when a scraper asks: sizes of caches, work under way, when certificates end.

    Figures <- readers of executor, assembly ...        a reader yields Figure(name, value, labels)

Rules:
- Nothing is counted here and nothing is kept: between two scrapes a figure costs nothing, and a label that is gone is
  gone from the exposition.
- Figures of the same name and labels are added up: several caches of a kind are one figure.
- A reader answers from memory, at once. The values of its labels are from closed lists, or a bounded number of names
  that whoever configures the provider gave; never image names, hosts or error texts.

What does not belong here: what is counted as it happens (telemetry.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Figure(NamedTuple):
    """One value of one of FAMILIES.

    Attributes:
        name: a key of FAMILIES.
        value: the value.
        labels: values of its labels, in their order.
    """

    name: str
    value: float
    labels: tuple[str, ...] = ()


class Family(NamedTuple):
    """What a figure is.

    Attributes:
        documentation: one sentence.
        labels: names of its labels.
        counter: it only grows, or begins anew.
    """

    documentation: str
    labels: tuple[str, ...] = ()
    counter: bool = False


FAMILIES: Final[Mapping[str, Family]] = {
    "countersign_cache_entries": Family("Entries of a cache: verdicts, objects, ocsp, crl.", ("cache",)),
    "countersign_cache_bytes": Family("Bytes that they take, as they are reckoned against the limit.", ("cache",)),
    "countersign_cache_hits": Family("Look-ups that found what they looked for.", ("cache",), counter=True),
    "countersign_cache_misses": Family("Look-ups that did not.", ("cache",), counter=True),
    "ratify_blob_cache_count": Family("The same of manifests and envelopes, by hit.", ("hit",), counter=True),
    "countersign_work_under_way": Family(
        "Shared work under way: key (one spelling of an image), digest (its verification), tag (look-ups to mutate).",
        ("work",),
    ),
    "countersign_hosts_waited_for": Family("Registry hosts that work under way waits for."),
    "countersign_hosts_suspect": Family(
        "Those of them that kept an answer waiting in vain and have finished nothing since."
    ),
    "countersign_registry_hosts": Family(
        "Hosts of registries, their token services and storage that hold requests back: limited (by 429), down (left"
        " alone for a while).",
        ("state",),
    ),
    "countersign_registry_requests": Family("Requests to them: under_way, waiting (for their turn).", ("state",)),
    "countersign_trust_anchor_not_after_seconds": Family(
        "Unix time at which the first certificate of a key provider that anchors trust in a trust store ends;"
        " of those that have ended already only if there is no other.",
        ("provider", "store"),
    ),
    "countersign_crl_next_update_seconds": Family(
        "Unix time at which the first CRL that is kept ends, if nobody can fetch a newer one."
    ),
}


class Figures(Collector):
    """Asks its readers at each scrape. Registered with a registry of the Prometheus client by telemetry.Metrics."""

    def __init__(self) -> None:
        self._readers: list[Callable[[], Iterable[Figure]]] = []

    def read_from(self, reader: Callable[[], Iterable[Figure]]) -> None:
        """Ask this reader too from now on."""
        self._readers.append(reader)

    def collect(self) -> Iterator[Metric]:
        """The families with what the readers say, every family whether there is a value or not."""
        sums: dict[tuple[str, tuple[str, ...]], float] = {}
        for reader in self._readers:
            for name, value, labels in reader():
                sums[name, labels] = sums.get((name, labels), 0) + value
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {
            name: (CounterMetricFamily if family.counter else GaugeMetricFamily)(
                name, family.documentation, labels=family.labels
            )
            for name, family in FAMILIES.items()
        }
        for (name, labels), value in sums.items():
            families[name].add_metric(labels, value)
        yield from families.values()

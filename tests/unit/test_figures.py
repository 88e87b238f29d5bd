"""Figures that are read off at each scrape."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from provider.figures import FAMILIES, Figure
from provider.telemetry import Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample, None when there is none."""
    return metrics.registry.get_sample_value(name, labels)


def test_a_figure_without_a_reader_is_announced_and_has_no_value() -> None:
    page = Metrics().render()[0].decode()
    assert "# TYPE countersign_hosts_waited_for gauge" in page
    assert "\ncountersign_hosts_waited_for " not in page


def test_figures_of_the_same_name_and_labels_are_added_up() -> None:
    metrics = Metrics()

    def reader() -> Iterator[Figure]:
        yield Figure("countersign_cache_entries", 2, ("crl",))
        yield Figure("countersign_cache_hits", 5, ("crl",))

    metrics.figures.read_from(reader)
    metrics.figures.read_from(lambda: [Figure("countersign_cache_entries", 3, ("crl",))])
    assert value(metrics, "countersign_cache_entries", cache="crl") == 5
    assert value(metrics, "countersign_cache_hits_total", cache="crl") == 5


def test_what_a_reader_says_no_more_is_shown_no_more() -> None:
    metrics = Metrics()
    said = [Figure("countersign_trust_anchor_not_after_seconds", 1.0, ("old", "ca:x"))]
    metrics.figures.read_from(lambda: said)
    assert b'provider="old"' in metrics.render()[0]
    said[:] = [Figure("countersign_trust_anchor_not_after_seconds", 2.0, ("new", "ca:x"))]
    page = metrics.render()[0]
    assert b'provider="old"' not in page
    assert b'provider="new"' in page


def test_a_figure_that_nobody_declared_is_a_fault_of_the_program() -> None:
    metrics = Metrics()
    metrics.figures.read_from(lambda: [Figure("countersign_surprise", 1.0)])
    with pytest.raises(KeyError):
        metrics.render()


def test_every_family_is_announced_with_a_sentence() -> None:
    for name, family in FAMILIES.items():
        assert family.documentation.endswith("."), name

"""What the server counts, for Prometheus at /metrics."""

from collections.abc import Iterable
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hyenadna.serve.batcher import Batcher

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class _OfBatcher(Collector):
    """What the batcher counts, read when it is asked for."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def collect(self) -> Iterable[Metric]:
        stats = self._batcher.stats
        yield GaugeMetricFamily("hyena_queue_tokens", "Tokens that wait.", stats.queued_tokens)
        yield GaugeMetricFamily("hyena_running_units", "Units of work in the running batch.", stats.running)
        yield CounterMetricFamily("hyena_batches", "Batches that were run.", stats.batches)
        yield CounterMetricFamily("hyena_model_seconds", "Seconds in which the model was busy.", stats.seconds)
        yield CounterMetricFamily("hyena_failures", "Units of work of which the model gave no result.", stats.failures)
        yield CounterMetricFamily("hyena_tokens", "Tokens that the model has read.", stats.tokens)
        yield CounterMetricFamily("hyena_generated_tokens", "Tokens that were generated.", stats.generated)
        yield GaugeMetricFamily("hyena_generations", "Generations under way.", stats.generations)


class Metrics:
    """Counts requests; `text()` is what Prometheus reads."""

    KIND = CONTENT_TYPE_LATEST

    def __init__(self, batcher: Batcher, model: dict[str, Any]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "hyena_requests", "Requests that were answered.", ("route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "hyena_request_seconds",
            "From the headers of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.in_flight = Gauge("hyena_requests_in_flight", "Requests being answered.", registry=self._registry)
        info = {name: str(value) for name, value in model.items() if name != "adapters"}
        Info("hyena_model", "The model.", registry=self._registry).info(info)
        self._registry.register(_OfBatcher(batcher))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

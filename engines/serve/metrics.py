"""What Prometheus reads of a server at `/metrics`."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from engines.joining.batch import METRICS, Count
from engines.serve.models import Models

_LABELS = {"var_images_total": ("result",), "var_scale_seconds_total": ("scale",)}


class Metrics:
    """Counters of one server, which any thread may add to."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the page
        self._registry = CollectorRegistry()
        self._counters = {
            name: Counter(name.removesuffix("_total"), text, ("model", *_LABELS.get(name, ())), registry=self._registry)
            for name, text in METRICS.items()
        }
        self.seconds = Histogram(
            "var_request_seconds",
            "Seconds from a request to its last byte, by path and status",
            ("path", "status"),
            registry=self._registry,
        )
        self._waiting = Gauge("var_images_waiting", "Images that wait for a batch", ("model",), registry=self._registry)
        self._loaded = Gauge(
            "var_model_loaded", "1 where its engines are in memory", ("model",), registry=self._registry
        )

    def counting(self, model: str) -> Count:
        """What adds to the metrics of one model."""

        def count(name: str, labels: Mapping[str, str], value: float) -> None:
            self._counters[name].labels(model=model, **labels).inc(value)

        return count

    def page(self, models: Models) -> bytes:
        """All of them, in Prometheus' text format."""
        for model in models:
            joiner = model.joiner
            self._loaded.labels(model=model.name).set(joiner is not None)
            self._waiting.labels(model=model.name).set(0 if joiner is None else joiner.images_waiting)
        return generate_latest(self._registry)

"""Figures of a service for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

# Upper bounds of buckets in seconds, up to the default time limit of a request
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters and histograms of one service; each has a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        # The library's global registry refuses the same names from a second service of the process.
        self.registry = CollectorRegistry()
        base = {"namespace": "hf_any3d", "registry": self.registry}
        told = "Requests by route and HTTP status; 499 if the client left first."
        self.requests = Counter("requests", told, ["route", "status"], **base)
        self.seconds = Histogram("request_seconds", "Time of requests.", ["route"], buckets=_SECONDS, **base)
        self.in_flight = Gauge("requests_in_flight", "Requests that are accepted and not yet answered.", **base)
        told = "Requests refused at once, by reason: queue, draining, host."
        self.refused = Counter("refused", told, ["reason"], **base)
        self.queued = Gauge("queued", "Clouds and conversations that wait for the model.", **base)
        self.batch_size = Histogram("batch_size", "Clouds or conversations in a batch.", buckets=_SIZES, **base)
        self.batch_seconds = Histogram("batch_seconds", "Time of the model for a batch.", buckets=_SECONDS, **base)
        self.points = Counter("points", "Points of the clouds that were read.", **base)
        self.new_tokens = Counter("generated_tokens", "Tokens of answers.", **base)

    def text(self) -> bytes:
        """Return all figures in Prometheus' format."""
        return generate_latest(self.registry)

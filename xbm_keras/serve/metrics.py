"""What Prometheus is told of the server."""

from typing import Any

import prometheus_client

ENDPOINTS = ("/", "/embed", "/search", "/items", "/picture", "/health", "/ready", "/metrics")
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters, in a registry of their own."""

    def __init__(self):
        self.registry = prometheus_client.CollectorRegistry()
        made: dict[str, Any] = {"namespace": "xbm_keras", "registry": self.registry}
        self.requests = prometheus_client.Counter(
            "requests", "Requests answered, those that were refused too", ["endpoint", "status"], **made
        )
        self.seconds = prometheus_client.Histogram(
            "request_seconds",
            "Until the end of an answer",
            ["endpoint"],
            buckets=SECONDS,
            **made,
        )
        self.pass_items = prometheus_client.Histogram(
            "pass_items", "Items that shared a pass over the model", ["kind"], buckets=SIZES, **made
        )
        self.index_items = prometheus_client.Gauge("index_items", "Items of the index that is served", **made)
        self.index_version = prometheus_client.Gauge("index_version", "Its version; 0 without an index", **made)
        self.model_version = prometheus_client.Gauge("model_version", "Version of the model that is served", **made)

    def observe(self, path: str, status: int, seconds: float) -> None:
        """An answer was given."""
        first = "/" + path.split("/")[1]
        endpoint = first if first in ENDPOINTS else "other"  # clients may ask for any
        self.requests.labels(endpoint, str(status)).inc()
        self.seconds.labels(endpoint).observe(seconds)

    def text(self) -> bytes:
        """All of them, in Prometheus' format."""
        return prometheus_client.generate_latest(self.registry)


CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST

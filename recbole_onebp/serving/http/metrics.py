"""What the service counts, in Prometheus's format."""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from recbole_onebp.serving.http.live import Live

__all__ = ["Metrics"]

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """Counters and gauges of one service.

    Attributes:
        events: by outcome: ``applied`` or ``not_new`` (retries, and events of unknown items).
    """

    def __init__(self, live: Live) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "recbole_onebp_requests", "Requests by endpoint and status.", ["endpoint", "status"], registry=registry
        )
        self._latency = Histogram(
            "recbole_onebp_request_seconds", "Seconds from the complete request to the answer.", ["endpoint"],
            buckets=_BUCKETS, registry=registry,
        )  # fmt: skip
        # Kept, because prometheus_client checks labels each time.
        self._of_request = lru_cache(128)(
            lambda endpoint, status: (self._requests.labels(endpoint, str(status)), self._latency.labels(endpoint))
        )
        self.events = Counter("recbole_onebp_events", "Events by outcome.", ["outcome"], registry=registry)
        for name, help_text, value in (
            ("recbole_onebp_users", "Users that the service knows.", lambda: live.ask(lambda rec: rec.n_users)),
            ("recbole_onebp_items", "Items that the service knows.", lambda: live.ask(lambda rec: rec.n_items)),
            ("recbole_onebp_event_bytes", "Size of the events on disk.", lambda: live.store.bytes),
        ):
            Gauge(name, help_text, registry=registry).set_function(value)

    def count(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        requests, latency = self._of_request(endpoint, status)
        requests.inc()
        latency.observe(seconds)

    def text(self) -> bytes:
        """All values in Prometheus's format."""
        return generate_latest(self._registry)

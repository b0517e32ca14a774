"""What the service counts, in Prometheus's format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from recbole_onebp.serving.http.live import Live

__all__ = ["SHARED_FOLDER", "Metrics"]

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable with the folder in which the processes of a service count together; without, each counts for itself."""

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """Counters and gauges of one service, of all its processes together.

    Attributes:
        events: by outcome: ``applied`` or ``not_new`` (retries, and events of unknown items).
    """

    def __init__(self, live: Live) -> None:
        self._live = live
        counted = CollectorRegistry()
        self._requests = Counter(
            "recbole_onebp_requests", "Requests by endpoint and status.", ["endpoint", "status"], registry=counted
        )
        self._latency = Histogram(
            "recbole_onebp_request_seconds", "Seconds from the complete request to the answer.", ["endpoint"],
            buckets=_BUCKETS, registry=counted,
        )  # fmt: skip
        # Kept, because prometheus_client checks labels each time.
        self._of_request = lru_cache(128)(
            lambda endpoint, status: (self._requests.labels(endpoint, str(status)), self._latency.labels(endpoint))
        )
        self.events = Counter("recbole_onebp_events", "Events by outcome.", ["outcome"], registry=counted)
        self._registries = [CollectorRegistry(), counted]
        self._registries[0].register(self)
        if SHARED_FOLDER in os.environ:
            self._registries[1] = CollectorRegistry()
            MultiProcessCollector(self._registries[1])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges, which are the same in all processes; called by prometheus_client."""
        recommender = self._live.recommender
        yield GaugeMetricFamily("recbole_onebp_users", "Users that the service knows.", recommender.n_users)
        yield GaugeMetricFamily("recbole_onebp_items", "Items that the service knows.", recommender.n_items)
        yield GaugeMetricFamily("recbole_onebp_event_bytes", "Size of the events on disk.", self._live.store.bytes)

    def count(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        requests, latency = self._of_request(endpoint, status)
        requests.inc()
        latency.observe(seconds)

    def text(self) -> bytes:
        """All values in Prometheus's format."""
        return b"".join(map(generate_latest, self._registries))

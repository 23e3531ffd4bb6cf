"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

LAGS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
DELAYS = (0.001, 0.002, 0.005, *LAGS)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """A registry of its own: several servers in a process count apart."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.streams = Gauge("asrtool_streams", "Open audio streams", registry=registry)
        self.ended = Counter(
            "asrtool_streams_ended", "Audio streams that ended", ("how",), registry=registry
        )
        self.waiting = Gauge("asrtool_files_waiting", "Files that wait", registry=registry)
        self.audio = Counter(
            "asrtool_audio_seconds", "Recognised audio", ("kind",), registry=registry
        )
        self.work = Counter(
            "asrtool_work_seconds", "Time of recognising", ("kind",), registry=registry
        )
        self.rows = Histogram(
            "asrtool_batch_rows", "Streams in a batch", buckets=ROWS, registry=registry
        )
        self.lag = Histogram(
            "asrtool_stream_lag_seconds",
            "From the arrival of the last sample of a chunk to its result",
            buckets=LAGS,
            registry=registry,
        )
        self.loop = Histogram(
            "asrtool_loop_delay_seconds",
            "By which the event loop comes late to what is due: it has too much to read and write",
            buckets=DELAYS,
            registry=registry,
        )
        self.requests = Counter(
            "asrtool_requests", "Answered requests", ("route", "status"), registry=registry
        )

    def text(self) -> tuple[bytes, str]:
        """In Prometheus' text format, and its media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

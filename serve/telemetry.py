"""What a server tells of itself: Prometheus metrics, and one line of JSON per request. Never a byte of a photo."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

MULTIPROCESS_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Where all replicas of a node keep their figures, so that any of them answers for all; unset for one process."""

_SECONDS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

access_log: Final = logging.getLogger("bintally.access")
server_log: Final = logging.getLogger("bintally.server")


class Instruments:
    """The metrics of one process."""

    def __init__(self) -> None:
        if MULTIPROCESS_DIR in os.environ:
            Path(os.environ[MULTIPROCESS_DIR]).mkdir(parents=True, exist_ok=True)
        self._models: set[tuple[str, str, str]] = set()
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "http_requests_total", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "http_request_duration_seconds",
            "From the first byte of a request to the last of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.refused = Counter("bintally_refused_total", "Photos and requests refused.", ("code",), registry=registry)
        self.counted = Counter(
            "bintally_photos_counted_total", "Photos counted.", ("model", "count"), registry=registry
        )
        self.verdicts = Counter(
            "bintally_verdicts_total", "Records verified.", ("model", "decision"), registry=registry
        )
        self.flags = Counter("bintally_photo_flags_total", "Photos with a flag.", ("flag",), registry=registry)
        self.stage_seconds = Histogram(
            "bintally_stage_seconds",
            "Of a photo: to decode it; from decoded to counted.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_photos = Histogram(
            "bintally_batch_photos", "Photos per forward pass.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.in_flight = Gauge(
            "bintally_photos_in_flight",
            "Photos that are decoded, wait or are counted.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.shadowed = Counter(
            "bintally_shadow_total", "Photos that the shadow model counted, too.", ("agrees",), registry=registry
        )
        self.audits = Counter(
            "bintally_audits_total",
            "Audits ended: done, failed, or left by the client.",
            ("outcome",),
            registry=registry,
        )
        self.audited = Counter(
            "bintally_audited_bins_total",
            "Bins of audits: their decision, or why there is none.",
            ("outcome",),
            registry=registry,
        )
        self.model = Gauge(
            "bintally_model_info",
            "1 for each loaded model, 0 for one that was.",
            ("model", "version", "runtime"),
            registry=registry,
            multiprocess_mode="livemax",
        )

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        if MULTIPROCESS_DIR not in os.environ:
            return generate_latest(self._registry)
        forget_dead(Path(os.environ[MULTIPROCESS_DIR]))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def tell_models(self, models: Iterable[tuple[str, str, str]]) -> None:
        """Name, version and runtime of all models that are loaded now."""
        now = set(models)
        for labels in self._models - now:
            self.model.labels(*labels).set(0)  # among several processes a label cannot be taken back
        for labels in now:
            self.model.labels(*labels).set(1)
        self._models |= now


def forget_dead(folder: Path) -> None:
    """Take back what ended processes said of their present state; what they counted stays."""
    for path in folder.glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            with suppress(FileNotFoundError):  # another replica was faster
                mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


class JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record; its `fields` stand beside the message."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        } | getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_json(level: int = logging.INFO) -> None:
    """Write the logs of the server to stderr, as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for logger in (access_log, server_log):
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


def log_request(fields: dict[str, Any], emit: Callable[..., None] = access_log.info) -> None:
    """One line on an answered request."""
    emit("%s %s %s", fields["method"], fields["route"], fields["status"], extra={"fields": fields})

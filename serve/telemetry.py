"""What a server tells of itself: Prometheus metrics, and one line of JSON per request. Never a byte of a photo."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

_LOG_BYTES: Final = 100 * 2**20
_LOG_FILES: Final = 5
_SECONDS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

access_log: Final = logging.getLogger("bintally.access")
server_log: Final = logging.getLogger("bintally.server")


class Instruments:
    """The metrics of one process, or of all replicas on a node."""

    def __init__(self, folder: Path | None = None, node: str = "") -> None:
        """Make them.

        Args:
            folder: where all replicas of a node keep their figures, so that any of them answers for all; none for a
                server of one process.
            node: its name, which all figures of the folder are labelled with, as those of other nodes come from the
                same address.
        """
        if folder is not None:
            _share_figures(folder)
        self._folder, self._node = folder, node
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
        if self._folder is None:
            return generate_latest(self._registry)
        forget_dead(self._folder)
        registry = CollectorRegistry()
        registry.register(_Labelled(MultiProcessCollector(None, str(self._folder)), self._node))  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def tell_models(self, models: Iterable[tuple[str, str, str]]) -> None:
        """Name, version and runtime of all models that are loaded now."""
        now = set(models)
        for labels in self._models - now:
            self.model.labels(*labels).set(0)  # among several processes a label cannot be taken back
        for labels in now:
            self.model.labels(*labels).set(1)
        self._models |= now


@dataclass(frozen=True, slots=True)
class _Labelled(Collector):
    """Metrics with a label `node` more."""

    inner: Collector
    node: str

    def collect(self) -> Iterator[Metric]:
        for metric in self.inner.collect():
            metric.samples = [one._replace(labels={**one.labels, "node": self.node}) for one in metric.samples]
            yield metric


def _share_figures(folder: Path) -> None:
    """Have this process keep what its metrics count in a folder.

    prometheus_client decides on that by the environment when it is imported; a replica knows its folder only later.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]


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


def log_json(path: Path | None = None, level: int = logging.INFO) -> None:
    """Write the logs of the server as lines of JSON, to a file or to stderr."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if path is not None:
        handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES - 1)
    handler.setFormatter(JsonLines())
    for logger in (access_log, server_log):
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


def log_request(fields: dict[str, Any], emit: Callable[..., None] = access_log.info) -> None:
    """One line on an answered request."""
    emit("%s %s %s", fields["method"], fields["route"], fields["status"], extra={"fields": fields})

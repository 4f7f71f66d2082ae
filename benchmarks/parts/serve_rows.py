"""The rows of benchmarks/serve.py: what starts each server, and how it is asked."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
MAX_IN_FLIGHT: Final = "256"  # above the most clients of a run: by default, more than 64 are told to come back (503)
OWN_NETWORK: Final = ("unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
"""Ray's HAProxy listens on all interfaces; here it has none but the loopback."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a server finds its checkpoint, and where it is to listen."""

    checkpoint: Path
    port: int
    extra: Path | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """One row that answers HTTP."""

    command: Callable[[Place], list[str]]
    path: str = "/v1/count"
    form: str | None = None
    """The form's field of the photo; None posts it as the body."""
    environment: dict[str, str] = field(default_factory=dict)
    module: str | None = None
    """What must be installed, in the folder of extras or beside this project."""
    own_network: bool = False

    def missing(self, extra: Path | None) -> str | None:
        """Why it cannot be run."""
        if self.module is None or (extra is not None and (extra / self.module).is_dir()) or find_spec(self.module):
            return None
        return f"{self.module} is not installed; see --extra"

    def full_command(self, place: Place, core: int | None) -> list[str]:
        """With what it runs under."""
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        return [*pinned, *(OWN_NETWORK if self.own_network else ()), *self.command(place)]

    def full_environment(self, place: Place) -> dict[str, str]:
        """That of the process."""
        paths = [str(place.extra.resolve())] if place.extra and self.module else []
        paths += [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        settings = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "CHECKPOINT": str(place.checkpoint)}
        return os.environ | settings | self.environment


def _ours(*flags: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        start = [sys.executable, str(ROOT / "serve/start.py"), "--checkpoint", str(place.checkpoint)]
        return [*start, "--port", str(place.port), "--max-in-flight", MAX_IN_FLIGHT, *flags]

    return command


def _peer(name: str) -> Callable[[Place], list[str]]:
    script = str(ROOT / f"benchmarks/parts/peer_{name}.py")
    return lambda place: [sys.executable, script, str(place.checkpoint), str(place.port)]


def _bentoml(place: Place) -> list[str]:
    service = "benchmarks.parts.peer_bentoml:Counter"
    return [sys.executable, "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(place.port)]


_EAGER: Final = ("--runtime", "eager")
_INT8: Final = ("--runtime", "onnx_int8")
_HA_PROXY: Final = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}

SERVERS: Final[dict[str, Server]] = {
    "bintally": Server(command=_ours(*_EAGER)),
    "bintally_local": Server(command=_ours("--engine", "local", *_EAGER)),
    "bintally_ray_proxy": Server(command=_ours("--no-front", *_EAGER)),
    "bintally_ray_haproxy": Server(command=_ours("--no-front", *_EAGER), environment=_HA_PROXY, own_network=True),
    "ray_fastapi": Server(command=_peer("ray"), path="/count"),
    "litserve": Server(command=_peer("litserve"), path="/predict", form="photo", module="litserve"),
    "bentoml": Server(
        command=_bentoml,
        path="/count",
        form="photos",
        module="bentoml",
        environment={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    "fastapi": Server(command=_peer("fastapi"), path="/count"),
    "bintally_int8": Server(command=_ours(*_INT8)),
    "bintally_local_int8": Server(command=_ours("--engine", "local", *_INT8)),
}
LOOPS: Final = {"loop": "eager", "loop_int8": "onnx_int8"}
"""The bare loops, and what they count by."""
ROWS: Final = (
    "loop",
    *[name for name in SERVERS if "int8" not in name],
    "loop_int8",
    "bintally_int8",
    "bintally_local_int8",
)
QUICK_ROWS: Final = ("loop", "bintally", "bintally_local", "fastapi")


def limit_of(row: str) -> str:
    """The bare loop that a row is compared with."""
    return "loop_int8" if row.endswith("int8") else "loop"

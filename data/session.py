"""One Ray session: the cluster named by RAY_ADDRESS, or an isolated local one that ends with the command.

A local Ray has its own temporary folder and token authentication (Ray's default unless RAY_AUTH_MODE says otherwise).
Every worker learns the address of its cluster: without it, Train's placement-group cleaner asks whichever Ray it finds
first, and the workers of trials that were stopped early are never given back.
"""

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bintally.errors import BinTallyError, RunError
from bintally.ports import free_port

_SETTINGS = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # they drown every log
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",  # an autoscaled GPU node takes minutes to come
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how late an epoch is heard of; the default is 2
    "RAY_worker_maximum_startup_concurrency": "8",  # a trial is some ten small actors; the default warns at each
    "RAY_num_workers_soft_limit": "16",  # at one per CPU, the default, idle data workers keep ending and starting
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's tables ignore verbose=0
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # today's default warns of tomorrow's
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the search keeps its own record
}

SHARED = "BINTALLY_SHARED_RAY"
"""Variable that is set in all processes of a command which joined a running cluster: others may use it, too."""

_LOOPBACK = "127.0.0.2"  # Ray swaps 127.0.0.1 for the machine's public address; the rest of 127/8 stays


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Connect to RAY_ADDRESS, or start a local Ray with so many logical CPUs (default: the machine's cores)."""
    os.environ.update({key: os.environ.get(key, value) for key, value in _SETTINGS.items()})
    logging.getLogger("ray").setLevel(logging.ERROR)
    address = os.environ.get("RAY_ADDRESS")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with _running_cluster(address) if address else _local_cluster(num_cpus):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # ray.init sets its own, which forgets our exit code
        _configure_ray_data()
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _running_cluster(address: str) -> Iterator[None]:
    ray.init(
        address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"RAY_ADDRESS": address, SHARED: "1", **_SETTINGS}},
    )
    os.environ[SHARED] = "1"
    try:
        yield
    finally:
        del os.environ[SHARED]


@contextmanager
def _local_cluster(num_cpus: int | None) -> Iterator[None]:
    temp_dir = Path(tempfile.mkdtemp(prefix="bintally-", dir=_short_temp_dir()))
    port = free_port()
    # Inherited by all processes of this Ray. A runtime environment would cost each worker half a second of CPU, and Ray
    # could use none of the workers that it starts beforehand.
    inherited = {
        "RAY_ADDRESS": f"{_LOOPBACK}:{port}",
        "RAY_GCS_SERVER_PORT": str(port),
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this machine away: one process less per training
    }
    os.environ.update(inherited)
    try:
        _start_local(num_cpus, temp_dir)
        _hide_token()
        yield
    finally:
        ray.shutdown()
        for key in inherited:
            os.environ.pop(key, None)
        shutil.rmtree(temp_dir, ignore_errors=True)


def _start_local(num_cpus: int | None, temp_dir: Path) -> None:
    try:
        ray.init(
            "local",
            num_cpus=num_cpus,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=free_port(),
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address=_LOOPBACK,
            _temp_dir=str(temp_dir),
        )
    except Exception as error:
        if "timed out during startup" not in str(error):  # Ray has no class for it
            raise
        raise RunError("Ray did not start within 30 s; is the machine busy with something else? Try again") from error


def _short_temp_dir() -> str:
    """The user's temporary folder, or /tmp where that has a long path: unix sockets below it allow 107 characters."""
    chosen = tempfile.gettempdir()
    return chosen if len(chosen) <= 24 else "/tmp"  # noqa: S108  # mkdtemp makes a private folder in it


def _configure_ray_data() -> None:
    """Leave the terminal to our own progress, and let our own errors come through as they are."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors reach the user as exceptions
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True


def _hide_token() -> None:
    """Let only this user read the token, which Ray writes readable for all."""
    token_path = Path.home() / ".ray" / "auth_token"
    if token_path.exists():
        token_path.chmod(0o600)


def beside_driver() -> dict[str, Any]:
    """Options of an actor that must live as long as the driver: on its node, not on one that may be taken away."""
    here = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


def unwrap(error: BaseException) -> BinTallyError | None:
    """The error of ours that Ray wrapped, if there is one, without the advice that Ray appends to its message."""
    seen: BaseException | None = error
    while seen is not None:
        cause = seen.cause if isinstance(seen, RayTaskError) else getattr(seen, "controller_failure", None)
        if isinstance(cause, BinTallyError):
            cause.args = (str(cause).split("\nFailed to apply UDF transform")[0],)
            return cause
        seen = cause or seen.__cause__
    return None

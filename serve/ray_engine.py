"""A Ray that serves: started or joined, the application deployed by Serve's config schema, drained at the end.

Replicas take requests at ports of their own (Ray's direct ingress), on the loopback; serve/front.py stands before them.
"""

import http.client
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bintally.errors import BinTallyError, ConfigError, RunError
from bintally.ports import free_port
from serve.front import LOOK_AT_REPLICAS_S
from serve.front_process import short_temp_dir
from serve.ray_plan import APPLICATION, DEPLOYMENT, RayPlan, deploy_config
from serve.settings import Settings, read_tokens

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

_LOOPBACK: Final = "127.0.0.2"  # Ray swaps 127.0.0.1 for the machine's public address; the rest of 127/8 stays
_READY_S: Final = 300
_PROBE_S: Final = 2  # a replica that accepts and says nothing would be waited for past that
_ENVIRONMENT: Final = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # less CPU per request; the application has threads of its own
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",  # ten times as seldom as usual: less idle work
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",  # as above, fifty times; /metrics is the server's own
    "RAY_num_workers_soft_limit": "0",  # no spare worker, which would wake up a hundred times a second
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",  # the front learns within one that a replica is to end
    "RAY_SERVE_PORT_QUARANTINE_S": "10",  # the front looks at all ports; Ray's 150 s are for proxies that do not
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # today's default warns of tomorrow's
}
_OWN_RAY_ENVIRONMENT: Final = {  # of a Ray that is joined, others may ask for all this
    "RAY_enable_metrics_collection": "0",  # Ray's own Prometheus figures, which nobody asks for here
    "RAY_task_events_report_interval_ms": "0",  # for a dashboard that does not run
    "RAY_raylet_report_resources_period_milliseconds": "1000",  # ten times as seldom as usual
}


class ServingRay:
    """A Ray that runs the application."""

    def __init__(self, plan: RayPlan) -> None:
        self._plan = plan
        self._http_options = deploy_config(plan)["http_options"]

    def deploy(self, plan: RayPlan) -> None:
        """Deploy, or change what is deployed.

        Raises:
            BinTallyError: a model cannot be loaded, or the tokens cannot be read; what was deployed goes on.
        """
        import ray
        from ray.serve._private.api import serve_start  # `serve run` deploys a config file by the same call

        config = deploy_config(plan) | {"http_options": self._http_options}
        checked = _check_schema(config)
        # Here a fault is one line; in replicas it is six restarts and a long log.
        loading = ray.remote(num_cpus=0, num_gpus=0, max_calls=1)(_read).remote(plan.settings)
        client = serve_start(http_options=config["http_options"])  # meanwhile
        with _errors_of_ours():
            ray.get(loading)
            client.deploy_apps(checked)
        self._plan = plan

    def wait_until_ready(self) -> None:
        """Return once all replicas of the last deploy answer.

        Raises:
            RunError: they do not start.
        """
        with _errors_of_ours():
            _wait_until_ready(self._plan)


@contextmanager
def serving_ray(plan: RayPlan) -> Iterator[ServingRay]:
    """A Ray for the application, to deploy to: the one of RAY_ADDRESS, or one that ends with the block.

    Raises:
        RunError: Ray does not start, or the running one serves something already.
    """
    environment = dict(_ENVIRONMENT)
    if plan.replica_ports is not None:
        environment |= {
            "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(plan.replica_ports.start),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(plan.replica_ports.stop),
        }
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        environment |= _OWN_RAY_ENVIRONMENT
    # Ray's modules read them when they are imported, in this process, too.
    os.environ.update({key: os.environ.get(key, value) for key, value in environment.items()})
    temp_dir = Path(tempfile.mkdtemp(prefix="bintally-", dir=short_temp_dir()))
    try:
        with _joined(address, environment) if address else _started(plan, temp_dir):
            yield ServingRay(plan)
    finally:
        shutil.rmtree(temp_dir, ignore_errors=True)


@contextmanager
def _started(plan: RayPlan, temp_dir: Path) -> Iterator[None]:
    port = free_port()
    inherited = {"RAY_ADDRESS": f"{_LOOPBACK}:{port}", "RAY_GCS_SERVER_PORT": str(port)}
    os.environ.update(inherited)
    import ray
    from ray import serve

    try:
        _start_local(plan, temp_dir)
        with _ended(serve.shutdown):
            yield
    finally:
        ray.shutdown()
        for key in inherited:
            os.environ.pop(key, None)


def _start_local(plan: RayPlan, temp_dir: Path) -> None:
    import ray
    from ray._private.worker import global_worker

    try:
        with _own_sigterm():
            ray.init(
                "local",
                # One more than is used, so that the successor of a replica can start before that one ends.
                num_cpus=max(os.cpu_count() or 1, plan.max_replicas or plan.num_replicas) + 1,
                include_dashboard=False,  # its processes work all the time; the server has /metrics of its own
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address=_LOOPBACK,
                _temp_dir=str(temp_dir),
            )
        assert global_worker.node is not None
        global_worker.node.kill_log_monitor()  # nobody reads what it forwards, ten times a second
    except Exception as error:
        if "timed out during startup" not in str(error):  # Ray has no class for it
            raise
        raise RunError("Ray did not start within 30 s; is the machine busy with something else? Try again") from error


@contextmanager
def _joined(address: str, environment: dict[str, str]) -> Iterator[None]:
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client

    with _own_sigterm():
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": environment})
    try:
        if _get_global_client(raise_if_no_controller_running=False) is not None:
            raise RunError(f"the Ray at {address} serves something already; end that first, or let `serve deploy` add")
        with _ended(serve.shutdown):
            yield
    finally:
        ray.shutdown()


@contextmanager
def _ended(shut_down: Callable[[], None]) -> Iterator[None]:
    """Let replicas finish what is under way, however the block ends; Ray tells of it on stderr."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        yield
    finally:
        shut_down()


@contextmanager
def _errors_of_ours() -> Iterator[None]:
    """Whatever fails in Ray is one of our errors, which a running server survives."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, BinTallyError):
            raise cause from None
        raise RunError(f"Ray failed: {str(error).strip().splitlines()[-1]}") from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """ray.init sets a handler of its own, which forgets our exit code."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def _check_schema(config: dict[str, Any]) -> "ServeDeploySchema":
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    try:
        return ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _read(settings: Settings) -> None:
    """All that a replica reads."""
    from serve.models import load_models

    read_tokens(settings.token_file)
    load_models(settings)


def _wait_until_ready(plan: RayPlan) -> None:
    from ray import serve

    begun, told = time.monotonic(), ""
    while time.monotonic() < begun + _READY_S:
        application = serve.status().applications[APPLICATION]
        deployment = application.deployments.get(DEPLOYMENT)
        states: Mapping[Any, int] = deployment.replica_states if deployment else {}  # by name, or by enumeration
        line = f"{states.get('RUNNING', 0)} of {plan.num_replicas} replicas run"
        if line != told:
            print(f"{line} ({time.monotonic() - begun:.0f} s)", file=sys.stderr, flush=True)
            told = line
        if application.status == "RUNNING" and _num_healthy(plan.replica_ports) >= plan.num_replicas:
            time.sleep(2 * LOOK_AT_REPLICAS_S)  # then the front knows it, too
            return
        if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            message = (deployment.message if deployment else "") or application.message
            raise RunError(f"the replicas do not start: {message.strip().splitlines()[-1]}")
        time.sleep(0.2)
    raise RunError(f"the replicas did not start within {_READY_S} s")


def _num_healthy(ports: range | None) -> float:
    """Replicas that answer their health check, which begins some seconds after Serve calls them running."""
    if ports is None:
        return math.inf  # Ray Serve's own proxy sends requests to running ones
    healthy = 0
    for port in ports:
        with (
            suppress(OSError, http.client.HTTPException),
            closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_PROBE_S)) as one,
        ):
            one.request("GET", "/-/healthz")
            healthy += one.getresponse().status == HTTPStatus.OK
    return healthy

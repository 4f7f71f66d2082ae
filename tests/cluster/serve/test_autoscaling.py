"""Ray Serve's autoscaling, deployed as the comment in serve/config.yaml says."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import ray.serve

pytestmark = [pytest.mark.cluster, pytest.mark.faults]

SLOW = b"POST /v1/count HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 99\r\n\r\n\xff"
SCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 0.5,
    "downscale_delay_s": 1,
    "metrics_interval_s": 0.5,
    "look_back_period_s": 1,
}


def replica_states() -> dict[str, int]:
    """How many replicas run, start, stop; nothing while Ray imports the application anew."""
    deployments = ray.serve.status().applications["bintally"].deployments.values()
    return {str(state): number for one in deployments for state, number in one.replica_states.items()}


def is_deployed() -> bool:
    """Whether all replicas are as the last `serve deploy` wants them."""
    return bool(ray.serve.status().applications["bintally"].status == "RUNNING")


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, ray.serve.status()
        time.sleep(0.2)


def test_replicas_come_with_the_load_and_go_with_it(serving_ray: Any, settings: dict[str, Any]) -> None:  # noqa: ANN401  # of conftest.py
    server, done, seen = serving_ray.server, threading.Event(), []

    def load() -> None:
        while not done.is_set():  # a body that does not come is under way for seconds, and costs nothing
            with suppress(OSError), server.connect() as client:  # all that counts is that it is asked
                client.sendall(SLOW)
                client.recv(65_536)

    def run(number: int) -> bool:
        seen.append(replica_states())
        return seen[-1].get("RUNNING") == number

    clients = [threading.Thread(target=load) for _ in range(8)]
    serving_ray.deploy(settings, autoscaling_config=SCALING)
    try:
        for client in clients:
            client.start()
        wait_until(lambda: run(2))
        done.set()
        wait_until(lambda: run(1))
    finally:
        done.set()
        for client in clients:
            client.join()
        serving_ray.deploy(settings)
    # Ray replaces the replicas when autoscaling comes or goes; the old one stays until there is a new one.
    wait_until(lambda: run(1) and len(seen[-1]) == 1 and is_deployed())
    assert all(states.get("RUNNING") for states in seen if states)
    assert server.get("/readyz").status == 200

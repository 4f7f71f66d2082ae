"""Faults of a cluster and its processes, each done once to a search."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

from benchmarks.parts.chaos_cluster import HEAD
from benchmarks.parts.chaos_row import ChaosSetup, FaultRow
from benchmarks.parts.chaos_target import NEW_NODE, Strike, Target, run_fault
from bintally.errors import RunError

NOTICE_S: Final = 120  # ahead of which EC2 tells that it takes a spot node
# In a process of its own, since Ray settles on its authentication once in a process.
_DRAIN: Final = """
import sys
from train.spot import drain_node
sys.exit(not drain_node(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def run_train_worker(setup: ChaosSetup) -> FaultRow:
    """Kill -9 of a training worker in mid-epoch."""

    def strike(target: Target) -> Strike:
        target.wait_for_mid_epoch()
        workers = target.workers()
        at = time.monotonic()
        os.kill(target.random.choice(workers), signal.SIGKILL)
        return target.struck(f"a train worker killed within {target.when}", at, workers)

    return run_fault(setup, strike)


def run_trial_driver(setup: ChaosSetup) -> FaultRow:
    """Kill -9 of the process that drives a trial."""

    def strike(target: Target) -> Strike:
        target.wait_for_mid_epoch()
        workers = target.workers()
        at = time.monotonic()
        os.kill(target.driver(), signal.SIGKILL)
        return target.struck(f"the process of the trial killed within {target.when}", at, workers)

    return run_fault(setup, strike)


def run_worker_node(setup: ChaosSetup) -> FaultRow:
    """Kill -9 of all processes of a node that trains; another one comes at once."""

    def strike(target: Target) -> Strike:
        target.wait_for_mid_epoch()
        workers = target.workers()
        node = target.cluster.node_of(target.random.choice(workers))
        at = time.monotonic()
        target.cluster.kill(node)
        target.cluster.add(NEW_NODE)
        return target.struck(f"a node killed, with raylet and workers, within {target.when}", at, workers)

    return run_fault(setup, strike)


def run_head(setup: ChaosSetup) -> FaultRow:
    """Kill -9 of all processes of the head, the search among them; resumed on another cluster."""

    def strike(target: Target) -> Strike:
        target.wait_for_mid_epoch()
        workers = target.workers()
        at = time.monotonic()
        target.search.process.kill()
        target.cluster.kill(HEAD)
        target.resume_elsewhere()
        return target.struck(
            f"the head and the search killed within {target.when}, and with them every process and all rows in memory;"
            " --resume on another cluster",
            at,
            workers,
        )

    return run_fault(setup, strike)


def run_spot_notice(setup: ChaosSetup) -> FaultRow:
    """A node that trains is drained, as by train/spot.py at EC2's notice, and killed once its workers have left it."""

    def strike(target: Target) -> Strike:
        target.wait_for_mid_epoch()
        workers = target.workers()
        node = target.cluster.node_of(target.random.choice(workers))
        command = [sys.executable, "-c", _DRAIN, target.cluster.address, node, str(NOTICE_S)]
        at = time.monotonic()
        if subprocess.run(command, check=False, env=os.environ | target.cluster.environment).returncode:
            raise RunError(f"Ray does not drain node {node}")
        target.cluster.add(NEW_NODE)
        done = target.struck(f"a node drained within {target.when}, and killed once its workers had left", at, workers)
        target.cluster.kill(node)
        return done

    return run_fault(setup, strike)


ROWS: Final[dict[str, Callable[[ChaosSetup], FaultRow]]] = {
    "train_worker": run_train_worker,
    "trial_driver": run_trial_driver,
    "worker_node": run_worker_node,
    "head": run_head,
    "spot_notice": run_spot_notice,
}

"""Watch for EC2's notice that this spot node is taken back, and drain it in Ray, so that trainings store a checkpoint.

    python -m train.spot --address=HEAD:6379      # cluster.yaml starts it on every worker

EC2 gives the notice two minutes ahead, at the node's metadata service alone, and Ray does not ask there by itself. On a
node that is not spot the command ends at once, else once the node is drained.
"""

import argparse
import json
import os
import sys
import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

import httpx

from bintally.cli import readable_errors

_POLL_S: Final = 5.0  # as AWS advises
_TOKEN_TTL: Final = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}


def read_metadata(service: httpx.Client, path: str) -> str | None:
    """What an instance's metadata service (IMDSv2) has at a path, None if it has nothing there.

    Raises:
        httpx.HTTPError: it does not answer, or refuses.
    """
    token = service.put("/latest/api/token", headers=_TOKEN_TTL).raise_for_status().text
    answer = service.get(f"/latest/meta-data/{path}", headers={"X-aws-ec2-metadata-token": token})
    return None if answer.status_code == HTTPStatus.NOT_FOUND else answer.raise_for_status().text


def seconds_left(notice: str, now: datetime) -> int:
    """Seconds until EC2 does what the notice says, `{"action": "terminate", "time": "2026-11-22T02:00:00Z"}`."""
    due = datetime.fromisoformat(json.loads(notice)["time"])
    return max(0, round((due - now).total_seconds()))


def drain_node(address: str, instance_id: str, left_s: int) -> bool:
    """Have Ray start nothing more on an instance, and tell trainings that it goes; whether Ray has the node and agrees.

    Raises:
        RuntimeError: the cluster cannot be reached.
    """
    # As the hidden command `ray drain-node` does, which asks for the node's id. Compiled modules have no types.
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]
    from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]
    from ray.exceptions import RayError

    deadline_ms = time.time_ns() // 1_000_000 + left_s * 1000
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    try:
        gcs = GcsClient(address=address)
        nodes = gcs.get_all_node_info(timeout=10).values()
        mine = [one for one in nodes if one.instance_id == instance_id and one.state == GcsNodeInfo.ALIVE]
        accepted = [gcs.drain_node(one.node_id.hex(), reason, "spot", deadline_ms)[0] for one in mine]
    except RayError as error:
        raise RuntimeError(f"{address} cannot be reached: {error}") from None
    return any(accepted)


def watch(service: httpx.Client, address: str) -> None:
    """Wait for a notice, however long, and drain the node. What cannot be asked now is asked again."""
    told = ""
    while True:
        try:
            if read_metadata(service, "instance-life-cycle") != "spot":
                _say("this is no spot node: there is nothing to watch for")
                return
            if notice := read_metadata(service, "spot/instance-action"):
                left_s = seconds_left(notice, datetime.now(UTC))
                _say(f"EC2 takes this node back in {left_s} s")
                if drain_node(address, read_metadata(service, "instance-id") or "", left_s):
                    _say("drained")
                    return
            told = ""
        except (httpx.HTTPError, RuntimeError, ValueError, KeyError) as error:
            if str(error) != told:  # once, not every five seconds
                told = str(error)
                _say(f"will ask again: {type(error).__name__}: {told}")
        time.sleep(_POLL_S)


def _say(message: str) -> None:
    sys.stdout.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {message}\n")
    sys.stdout.flush()


def main() -> None:
    """Parse, then watch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True, help="of the cluster's head, as 10.0.0.1:6379")
    address = parser.parse_args().address
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")  # the AWS SDKs' variable
    with readable_errors(), httpx.Client(base_url=endpoint, timeout=5, trust_env=False) as service:  # never by a proxy
        watch(service, address)


if __name__ == "__main__":
    main()

"""`ray up` from beginning to end without AWS, step by step, in namespaces of its own.

    unshare -Urnmpfu --mount-proc .venv/bin/python tests/cluster/ray_up/rehearse.py

Real are cluster.yaml, all of Ray, cluster/tunnel.py, train/gpu_check.py and train/spot.py. EC2 is moto, an instance a
set of namespaces (cloud.py), and bin/ stands in for ssh, rsync, uv and nvidia-smi: packages are those of this
environment, and all nodes are this machine. Nothing is left, not even after a kill: all lives in a PID namespace and on
a tmpfs.
"""

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
BIN = Path(sys.executable).parent
REPO = Path("/srv/repo")
CLUSTER = Path("/srv/cluster.yaml")
TOKEN = Path("/srv/home/.ray/auth_token")
LAPTOP = {
    "HOME": "/srv/home",
    "TMPDIR": "/srv",
    "PATH": f"{HERE}/bin:{BIN}:/usr/bin:/bin:/usr/sbin:/sbin",
    "PYTHONPATH": str(ROOT),
    "AWS_ACCESS_KEY_ID": "laptop",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_ENDPOINT_URL": "http://172.31.255.254:5000",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def prepare() -> None:
    """A laptop with the repository, as it is checked out, and a token."""
    subprocess.run(["/bin/mount", "-t", "tmpfs", "srv", "/srv"], check=True)
    left_out = shutil.ignore_patterns(".git", ".venv", "runs", "*_cache", "__pycache__")
    shutil.copytree(ROOT, REPO, ignore=left_out, symlinks=True)
    Path("/srv/home").mkdir()
    os.environ.clear()
    os.environ.update(LAPTOP)
    os.chdir(REPO)


def config(image: str) -> dict[str, Any]:
    """cluster.yaml with a node type of its variant cpu, an image that moto has, and less patience."""
    from cluster.render import cluster_config, merge

    types = cluster_config()["available_node_types"]
    types["cpu_on_demand"] = cluster_config("cpu")["available_node_types"]["cpu_on_demand"]
    changed = {name: merge(one, {"node_config": {"ImageId": image}}) for name, one in types.items()}
    less = {"idle_timeout_minutes": 0.1, "provider": {"use_internal_ips": True}}
    return merge(cluster_config(), {**less, "available_node_types": changed})


def call(*command: str, timeout_s: float = 240) -> str:
    """What one of our commands says; its failure ends the rehearsal."""
    with tempfile.TemporaryFile("w+") as said:
        code: object = f"no end within {timeout_s} s"
        with suppress(subprocess.TimeoutExpired):
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=timeout_s, check=False
            ).returncode
        said.seek(0)
        if code:
            sys.exit(f"{command}: {code}\n{said.read()[-4000:]}")
        return said.read()


def wait_for(what: str, look: Callable[[], Any], timeout_s: float = 60) -> Any:  # noqa: ANN401  # whatever `look` finds
    """The first true answer."""
    begun = time.monotonic()
    while not (seen := look()):
        if time.monotonic() > begun + timeout_s:
            sys.exit(f"waited {timeout_s} s in vain: {what}")
        time.sleep(0.2)
    return seen


def rehearse() -> Iterator[str]:
    """Each step once it went well."""
    prepare()
    import yaml
    from cloud import STANDINS, Cloud  # beside this script

    os.environ.update(STANDINS)
    cloud = Cloud()
    for role in ("bintally-head", "bintally-worker"):
        cloud.iam.create_instance_profile(InstanceProfileName=role)
    CLUSTER.write_text(yaml.safe_dump(config("ami-12c6146b")))  # one of those that moto has
    call("ray", "get-auth-token", "--generate")
    TOKEN.chmod(0o600)
    yield "the cloud and the laptop are there"

    call("ray", "up", "--yes", str(CLUSTER))
    (head,) = cloud.instances()
    node = cloud.node(head["PrivateIpAddress"])
    assert head["IamInstanceProfile"]["Arn"].endswith("/bintally-head")
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    assert node.output("cat ~/.ray/auth_token") == TOKEN.read_text()
    assert node.output("stat -c %a ~/.ray/auth_token") == "600\n"
    (key,) = Path("/srv/home/.ssh").glob("*.pem")  # with which the head reaches its workers
    assert node.output("cat ~/ray_bootstrap_key.pem") == key.read_text()
    assert node.output("ls ~/bintally/tune/search.py") == f"{node.env['HOME']}/bintally/tune/search.py\n"
    installs = node.output("cat ~/uv.log")
    assert installs.count("--require-hashes -r requirements.lock") == 1
    yield "ray up: the head runs, with the repository, the packages and the token"

    status = call("ray", "exec", str(CLUSTER), "ray status")
    assert "1 head" in status
    assert " CPU" not in status, "the head takes no work"
    asked = "import urllib.request as r; r.urlopen('http://127.0.0.1:8265/api/cluster_status')"
    assert "401" in node.output(f'python3 -c "{asked}" 2>&1 | tail -1'), "the dashboard wants the token"
    with socket.socket() as stranger:
        assert stranger.connect_ex((head["PrivateIpAddress"], 8265)) == errno.ECONNREFUSED
    yield "ray exec works; the dashboard wants the token and listens on the head's loopback alone"

    lines = submitted_job()
    assert next(lines) == "cpu: on-demand cpu_on_demand"
    yield "a job, submitted through the tunnel, made a CPU node come"
    *kind, _ = next(lines).split()
    assert kind == ["gpu:", "spot", "gpu_spot"]
    (spot,) = (one for one in cloud.instances() if one.get("InstanceLifecycle") == "spot")
    assert spot["InstanceType"] == "g5.12xlarge"
    assert spot["IamInstanceProfile"]["Arn"].endswith("/bintally-worker")
    yield "a group of 4 GPUs made a spot node come, whose GPUs were checked"
    due = datetime.now(UTC) + timedelta(seconds=120)
    cloud.notices[spot["InstanceId"]] = f'{{"action": "terminate", "time": "{due:%Y-%m-%dT%H:%M:%SZ}"}}'
    told, left_s = next(lines).rsplit(maxsplit=1)
    assert told == "seconds left:"
    assert 60 < int(left_s) <= 120
    assert list(lines) == []
    yield "EC2's notice reached Ray, which drains the node; the job is done"

    wait_for("idle nodes to go", lambda: len(cloud.instances()) == 1, timeout_s=90)
    yield "both idle nodes are gone"
    call("ray", "up", "--yes", "--no-restart", str(CLUSTER))
    assert node.output("cat ~/uv.log").count("--require-hashes") == 1
    yield "ray up again: no package was installed twice"
    call("ray", "down", "--yes", str(CLUSTER))
    wait_for("the head to go", lambda: not cloud.instances() and not cloud.nodes)
    assert len(cloud.instances("terminated")) == 3
    yield "ray down: no instance is left"


def submitted_job() -> Iterator[str]:
    """What job.py prints, line by line, as `make submit` shows it."""
    working_dir = Path("/srv/job")
    working_dir.mkdir()
    shutil.copy(HERE / "job.py", working_dir)
    command = [sys.executable, "cluster/tunnel.py", str(CLUSTER), "ray", "job", "submit", "--working-dir"]
    with subprocess.Popen(
        [*command, str(working_dir), "--", "python", "job.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith(("cpu:", "gpu:", "seconds left:")):
                yield line.strip()
    if process.returncode:
        sys.exit(f"the job failed:\n{''.join(said)}")


if __name__ == "__main__":
    begun = time.monotonic()
    for step in rehearse():
        print(f"[{time.monotonic() - begun:5.1f} s] {step}", flush=True)

"""An EC2 in which instances run: moto answers the API, and each instance is a set of Linux namespaces of its own."""

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

HERE = Path(__file__).resolve().parent
GATEWAY = "172.31.255.254"  # moto's default subnets lie in 172.31.0.0/16
METADATA = "169.254.169.254"
ENDPOINT = f"http://{GATEWAY}:5000"
HOME = Path("/srv/home")  # /srv is a tmpfs of its own here and on each node
SOCKET = Path("/media/ssh")  # /media is one that all share
STANDINS = {
    "REHEARSAL_DIR": str(HERE),
    "REHEARSAL_PYTHON": sys.executable,
    "REHEARSAL_BIN": str(Path(sys.executable).parent),
    "REHEARSAL_SOCKET": str(SOCKET),
}
NO_NAMES = ": > /srv/resolv.conf; mount --bind /srv/resolv.conf /etc/resolv.conf"  # a name server would be waited for
INIT = f"""set -e
mount -t tmpfs srv /srv
mkdir -p {HOME}/uv/bin
ln -s {HERE}/bin/uv {HOME}/uv/bin/uv
echo 'export PATH={HERE}/bin:$PATH' > {HOME}/.bashrc
hostname "$2"
printf '127.0.0.1 localhost\\n%s %s\\n' "$1" "$2" > /srv/hosts
mount --bind /srv/hosts /etc/hosts
{NO_NAMES}
until ip addr add "$1/16" dev e0 2> /dev/null; do sleep 0.02; done
ip link set e0 up
ip link set lo up
ip route add default via {GATEWAY}
echo ready
sleep infinity & wait
"""


def run(script: str, *args: str) -> None:
    """Run a script in this network."""
    subprocess.run(["/bin/bash", "-ec", script, "bash", *args], check=True)


class Node:
    """An instance that runs: a network address, processes, files and a hostname apart from the others'."""

    def __init__(self, address: str) -> None:
        name = f"ip-{address.replace('.', '-')}"
        command = ["unshare", "-nmpfu", "--mount-proc", "/bin/bash", "-c", INIT, "init", address, name]
        # Some versions of unshare complain once their child is killed.
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while not (child := children.read_text().split()):
            time.sleep(0.01)
        self.pid = child[0]
        link = f"v{self.pid}"
        run(f"ip link add {link} type veth peer name e0 netns {self.pid}; ip link set {link} master br0 up")
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"
        self.env = {
            **STANDINS,
            "HOME": str(HOME),
            "PATH": f"{HERE}/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "RAY_TMPDIR": "/srv",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "AWS_ENDPOINT_URL": ENDPOINT,
            "AWS_ACCESS_KEY_ID": f"role-of-{name}",
            "AWS_SECRET_ACCESS_KEY": "x",
        }

    def entering(self, command: list[str]) -> list[str]:
        """The command, as one that runs on this node, with nothing of our environment."""
        env = [f"{key}={value}" for key, value in self.env.items()]
        return ["nsenter", "-t", self.pid, "-n", "-m", "-p", "-u", "--wd=" + str(HOME), "env", "-i", *env, *command]

    def output(self, script: str) -> str:
        """What a script prints on this node."""
        command = self.entering(["/bin/bash", "-c", script])
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def end(self) -> None:
        """Switch it off."""
        with suppress(ProcessLookupError):
            os.kill(int(self.pid), signal.SIGKILL)  # the first process of a PID namespace takes all others along
        self.process.wait()


class Cloud:
    """Where `ray up` finds EC2, its instances and their metadata."""

    def __init__(self) -> None:
        run(
            "mount -t tmpfs shared /media; ip link set lo up; ip link add br0 type bridge; ip link set br0 up;"
            f"ip addr add {GATEWAY}/16 dev br0; ip addr add {METADATA}/32 dev br0; {NO_NAMES}"
        )
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.server = ThreadedMotoServer("0.0.0.0", 5000, verbose=False)
        self.server.start()
        self.nodes: dict[str, Node] = {}
        self.notices: dict[str, str] = {}
        self._lock = threading.Lock()
        self.ec2 = boto3.client("ec2", region_name="us-east-1")
        self.iam = boto3.client("iam", region_name="us-east-1")
        for work in (self._run_ssh, self._switch_off, MetadataService(self).serve_forever):
            threading.Thread(target=work, daemon=True).start()

    def instances(self, *states: str) -> list[dict[str, Any]]:
        """What EC2 tells of instances in these states."""
        wanted = [{"Name": "instance-state-name", "Values": list(states or ("pending", "running"))}]
        found = self.ec2.describe_instances(Filters=wanted)["Reservations"]
        return [dict(instance) for reservation in found for instance in reservation["Instances"]]

    def node(self, address: str) -> Node:
        """The running instance with an address."""
        with self._lock:
            if address not in self.nodes:
                if address not in [one["PrivateIpAddress"] for one in self.instances()]:
                    raise LookupError(address)
                self.nodes[address] = Node(address)
            return self.nodes[address]

    def _switch_off(self) -> None:
        """End the nodes whose instances EC2 has ended."""
        while True:
            running = {one["PrivateIpAddress"] for one in self.instances()}
            for address in self.nodes.keys() - running:
                self.nodes.pop(address).end()
            time.sleep(0.5)

    def _run_ssh(self) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(SOCKET))
            server.listen(64)
            while True:
                threading.Thread(target=self._run_command, args=(server.accept()[0],), daemon=True).start()

    def _run_command(self, client: socket.socket) -> None:
        """Run what a stand-in for ssh asks for; its end ends a command that still runs, but not what that detached."""
        with client:
            message, fds, _, _ = socket.recv_fds(client, 1 << 20, 3)
            request = json.loads(message)
            command = ["/bin/bash", "-c", request.get("command", "")]
            if "relay" in request:
                command = [sys.executable, "-SI", str(HERE / "relay.py"), str(request["relay"])]
            try:
                entering = self.node(request["address"]).entering(command)
                process = subprocess.Popen(entering, stdin=fds[0], stdout=fds[1], stderr=fds[2], start_new_session=True)
            except LookupError:
                client.send(b"255")
                return
            finally:
                for fd in fds:
                    os.close(fd)
            while process.poll() is None:
                if select.select([client], [], [], 0.05)[0]:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            with suppress(BrokenPipeError):
                client.send(str(process.returncode % 256).encode())


class MetadataService(ThreadingHTTPServer):
    """Tells each instance of itself, by IMDSv2."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        super().__init__((METADATA, 80), MetadataHandler)


class MetadataHandler(BaseHTTPRequestHandler):
    """Knows who asks by the address."""

    server: MetadataService

    def do_PUT(self) -> None:
        """Give a session token."""
        self._answer("token")

    def do_GET(self) -> None:
        """Answer one path, for who has a token."""
        cloud, address = self.server.cloud, self.client_address[0]
        me = next(one for one in cloud.instances() if one["PrivateIpAddress"] == address)
        known = {
            "instance-id": me["InstanceId"],
            "instance-life-cycle": me.get("InstanceLifecycle", "on-demand"),
            "spot/instance-action": cloud.notices.get(me["InstanceId"]),
        }
        wanted = self.path.removeprefix("/latest/meta-data/")
        self._answer(known.get(wanted) if self.headers["X-aws-ec2-metadata-token"] == "token" else None)

    def _answer(self, text: str | None) -> None:
        self.send_response(200 if text else 404)
        self.send_header("Content-Length", str(len(text or "")))
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""

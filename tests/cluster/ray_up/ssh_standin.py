"""Stands in for ssh and rsync: asks the rehearsal to run a command in the namespaces of the node with an address."""

import json
import os
import socket
import subprocess
import sys
import threading
from fnmatch import fnmatch
from itertools import pairwise


def ask(request: dict[str, object], fds: list[int]) -> int:
    """Have a command run on a node, with these as its stdin, stdout and stderr; its exit code."""
    with socket.socket(socket.AF_UNIX) as rehearsal:
        rehearsal.connect(os.environ["REHEARSAL_SOCKET"])
        socket.send_fds(rehearsal, [json.dumps(request).encode()], fds)
        return int(rehearsal.recv(16) or 255)


def forward(address: str, local: int, remote: int) -> None:
    """Hand each connection to a local port to a port of the node's loopback."""
    with socket.create_server(("127.0.0.1", local)) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=relay, args=(address, remote, connection), daemon=True).start()


def relay(address: str, port: int, connection: socket.socket) -> None:
    """Until either end closes."""
    with connection:
        ask({"address": address, "relay": port}, [connection.fileno(), connection.fileno(), 2])


def ssh(args: list[str]) -> int:
    """Run `ssh OPTIONS USER@ADDRESS COMMAND...`, for who has a key, with -L as the only other option heeded here."""
    while args[0].startswith("-"):
        option = args.pop(0)
        if option == "-tt":
            continue
        value = args.pop(0)
        if option == "-i" and not os.path.exists(os.path.expanduser(value)):  # noqa: PTH110, PTH111  # without site-packages every import counts
            sys.stderr.write("Permission denied (publickey).\n")
            return 255
        if option == "-L":
            local, _, remote = value.split(":")
            address = next(arg.split("@")[1] for arg in args if "@" in arg and "=" not in arg)
            threading.Thread(target=forward, args=(address, int(local), int(remote)), daemon=True).start()
    address = args[0].split("@")[1]
    return ask({"address": address, "command": " ".join(args[1:])}, [0, 1, 2])


def excluded(args: list[str], folder: str) -> list[str]:
    """Patterns of what rsync leaves out: those of --exclude, and of files in the folder that --filter names."""
    patterns = []
    for option, value in pairwise(args):
        path = os.path.join(folder, value.removeprefix("dir-merge,- "))  # noqa: PTH118
        if option == "--exclude":
            patterns.append(value)
        elif option == "--filter" and os.path.exists(path):  # noqa: PTH110
            with open(path) as file:  # noqa: PTH123
                patterns += [line.strip() for line in file if line.strip() and not line.startswith("#")]
    return patterns


def rsync(args: list[str]) -> int:
    """Run `rsync ... SOURCE USER@ADDRESS:TARGET`: all of the source but what is excluded, nothing is deleted."""
    source, (place, target) = args[-2], args[-1].split(":")
    folder, name = os.path.split(source)
    left_out = excluded(args, folder)
    if not name:  # a folder, which Ray names with a slash behind it
        patterns = [f"--anchored --exclude=.{p}" if p[0] == "/" else f"--no-anchored --exclude={p}" for p in left_out]
        options = " ".join(patterns).replace("/ ", " ").removesuffix("/").split()
        pack, unpack = ["tar", "-C", source, *options, "-c", "."], f"mkdir -p {target} && tar -C {target} -x"
    elif any(fnmatch(name, p.removeprefix("/")) for p in left_out):
        return 0  # rsync says nothing, either
    else:
        pack, unpack = ["cat", source], f"cat > {target} && chmod {os.stat(source).st_mode & 0o777:o} {target}"  # noqa: PTH116
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as packing:
        assert packing.stdout
        return ask({"address": place.split("@")[1], "command": unpack}, [packing.stdout.fileno(), 1, 2])


if __name__ == "__main__":
    sys.exit({"ssh": ssh, "rsync": rsync}[sys.argv[1]](sys.argv[2:]))

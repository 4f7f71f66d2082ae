"""What an epoch, a search, and a million served photos take and cost on the cluster, by simulation.

python benchmarks/scale.py                                   # the tables of docs/scale.md, some seconds
python benchmarks/scale.py --gpu-images-per-s 1000 --spot-per-hour 2.0 --interruptions-per-hour 0.05
python benchmarks/scale.py --quick --json scale.json

What could be measured on two cores stands in benchmarks/baselines; the first table shows how well the same simulation
meets it. What could not (a GPU's speed, prices, how often spot nodes are taken) is a flag.
"""

import heapq
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, Final

from bintally.cli import readable_errors
from bintally.errors import ConfigError

BASELINES: Final = Path(__file__).parent / "baselines"
NUM_PHOTOS: Final = 535_234  # of ABID
TRAIN_SHARE: Final = 0.64
NODE_GPUS: Final = 4  # g5.12xlarge
NODE_CORES: Final = 48
SERVER_REPLICAS: Final = 15  # a c6i.4xlarge has 16 vCPU; one is for Ray and the front
BATCH: Final = 8  # photos in one forward pass, at most
NOTICED_S: Final = 15.0  # of work that an announced interruption costs, at most
UNNOTICED_S: Final = 600.0  # without a notice: --checkpoint-s
PREFIXES: Final = 2  # bin-images/ and metadata/; a bin is a request to each


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleArgs:
    """What is assumed, since it was not measured."""

    gpu_images_per_s: float = 700.0
    """ResNet-34 at 224 px, trained in bf16 on one A10G."""
    photo_kb: float = 59.5
    """Mean size of a photo and its record; of 824 real pairs."""
    spot_per_hour: float = 2.5
    """Of a g5.12xlarge, in dollars."""
    on_demand_per_hour: float = 5.67
    """Of the same."""
    head_per_hour: float = 0.53
    """Of the head, with disk and address."""
    server_per_hour: float = 0.68
    """Of a c6i.4xlarge, on demand."""
    server_load: float = 0.5
    """Share of its capacity that a server is asked for, on average."""
    interruptions_per_hour: float = 0.02
    """Of one spot node; AWS tells 5 to 20 % a month of most types, which is less than 0.0003."""
    node_start_s: float = 480.0
    """Until another node trains: boot, packages, the start of workers."""
    s3_per_s: float = 5500.0
    """Requests that S3 answers for a prefix, at least, before it splits the prefix or says 503."""
    nodes: int = 1
    """That train at once, each a trial of its own, all from the same bucket."""
    proxy_per_s: float = 200.0
    """Requests that Ray's own proxy hands on, one process, whatever stands behind it."""
    num_trials: int = 24
    """Of the search."""
    max_epochs: int = 24
    """Of its longest trial; ASHA's first rung is at a sixth, and a third goes on from each."""
    quick: bool = False
    """Fewer repetitions."""
    json: Path | None = None
    """Write the figures to this file."""

    def __post_init__(self) -> None:
        rates = ("gpu_images_per_s", "s3_per_s", "proxy_per_s")
        for name in (*rates, "photo_kb", "server_load", "node_start_s", "nodes", "num_trials", "max_epochs"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        most = 3600 / UNNOTICED_S
        if not 0 <= self.interruptions_per_hour < most:
            raise ConfigError(
                f"interruptions_per_hour must be from 0 to below {most:.0f}, not {self.interruptions_per_hour}: a"
                f" search that loses up to {UNNOTICED_S:.0f} s of work with each would hardly go on"
            )


def read_rows(name: str) -> dict[str, Any]:
    """The rows of a committed baseline."""
    return dict(json.loads((BASELINES / f"{name}.json").read_text())["rows"])


def served_per_s(num_clients: int, alone_ms: float, batched_ms: float, request_ms: float) -> float:
    """Answers per second of one core whose clients each ask again once they are answered.

    Args:
        num_clients: of them.
        alone_ms: CPU of a photo that is counted by itself.
        batched_ms: CPU of each photo in a full batch.
        request_ms: CPU of a request besides.
    """
    arrivals = [0.0] * num_clients
    heapq.heapify(arrivals)
    now, answered = 0.0, 0
    while answered < 2_000:
        now = max(now, arrivals[0])
        batch: list[float] = []
        while arrivals and arrivals[0] <= now and len(batch) < BATCH:
            batch.append(heapq.heappop(arrivals))
        full = (len(batch) - 1) / (BATCH - 1)
        now += len(batch) * (alone_ms + full * (batched_ms - alone_ms) + request_ms) / 1000
        for _ in batch:
            heapq.heappush(arrivals, now)
        answered += len(batch)
    return answered / now


def trained_per_s(train_per_s: float, feed_per_s: float, num_batches: int = 4000, ahead: int = 2) -> float:
    """Photos per second of a training whose batches are read and decoded meanwhile, some of them ahead.

    Both take a fifth more or less for each batch, evenly spread.
    """
    drawn = random.Random(0)  # noqa: S311  # a simulation
    made, taken = [0.0] * num_batches, [0.0] * num_batches
    for i in range(num_batches):
        start = max(made[i - 1] if i else 0.0, taken[i - 1 - ahead] if i > ahead else 0.0)
        made[i] = start + drawn.uniform(0.8, 1.2) / feed_per_s
        taken[i] = max(made[i], taken[i - 1] if i else 0.0) + drawn.uniform(0.8, 1.2) / train_per_s
    return num_batches / taken[-1]


def check_against_baselines() -> list[tuple[str, float, float]]:
    """What was measured, what the simulation says, by name."""
    serve, epoch, ingest = read_rows("serve"), read_rows("train_e2e"), read_rows("ingest")
    checks = []
    for kind, suffix in (("float32", ""), ("8 bits", "_int8")):
        loop, local = serve[f"loop{suffix}"], serve[f"bintally_local{suffix}"]
        request_ms = local["c32"]["cpu_ms"] - loop["c32"]["cpu_ms"]  # fitted here alone
        for clients in (8, 128):
            said = served_per_s(clients, loop["c1"]["cpu_ms"], loop["c8"]["cpu_ms"], request_ms)
            checks.append((f"answers/s, {kind}, {clients} clients", local[f"c{clients}"]["rps"], said))
    feed = 1000 / ingest["bintally"]["cpu_s_per_1000"]  # on the one core that the training leaves
    said = trained_per_s(epoch["memory_loop"]["images_per_s"], feed)
    checks.append(("photos/s of a streamed training", epoch["streamed"]["images_per_s"], said))
    return checks


def epochs_by_asha(num_trials: int, max_epochs: int, drawn: random.Random) -> list[int]:
    """Epochs of each trial, where a third goes on from each rung."""
    rungs = [max(1, -(-max_epochs // 6))]
    while rungs[-1] * 3 < max_epochs:
        rungs.append(rungs[-1] * 3)
    seen: dict[int, list[float]] = {rung: [] for rung in rungs}
    epochs = []
    for _ in range(num_trials):
        quality = drawn.random()
        ended = max_epochs
        for rung in rungs:
            score = quality + drawn.gauss(0, 0.1)
            seen[rung].append(score)
            best = sorted(seen[rung], reverse=True)[: max(1, len(seen[rung]) // 3)]
            if score < best[-1]:
                ended = rung
                break
        epochs.append(ended)
    return epochs


def run_search(epochs: list[int], epoch_s: float, args: ScaleArgs, lost_s: float, drawn: random.Random) -> float:
    """Hours until a node has run the trials one after the other, with interruptions.

    No more is lost than was done since the node came: what it began with is stored.

    Args:
        epochs: of each trial.
        epoch_s: seconds of an epoch on the node.
        args: how often the node is taken, and how long another needs.
        lost_s: longest time since the last checkpoint.
        drawn: random numbers.
    """
    left, clock = sum(epochs) * epoch_s, 0.0
    while left > 0:
        rate = args.interruptions_per_hour / 3600
        until = drawn.expovariate(rate) if rate else left
        if until >= left:
            return (clock + left) / 3600
        left -= max(0.0, until - drawn.uniform(0, lost_s))
        clock += until + args.node_start_s
    return clock / 3600


def plan(args: ScaleArgs) -> dict[str, dict[str, float]]:
    """The figures of an epoch, a search and a million photos."""
    decode_per_s = NODE_CORES * 1000 / read_rows("ingest")["bintally"]["cpu_s_per_1000"]
    gpu_per_s = NODE_GPUS * args.gpu_images_per_s
    alone_per_s = trained_per_s(gpu_per_s, decode_per_s)
    per_s = min(alone_per_s, args.s3_per_s / args.nodes)
    epoch_s = NUM_PHOTOS * TRAIN_SHARE / per_s
    per_hour = args.head_per_hour + args.nodes * args.spot_per_hour
    on_demand_per_hour = args.head_per_hour + args.nodes * args.on_demand_per_hour
    bytes_gb = NUM_PHOTOS * args.photo_kb / 1e6
    drawn = random.Random(0)  # noqa: S311  # a simulation
    repeats = 20 if args.quick else 500
    searches = [epochs_by_asha(args.num_trials, args.max_epochs, drawn) for _ in range(repeats)]

    def hours(lost_s: float, of: Callable[[list[int]], list[int]] = lambda epochs: epochs) -> float:
        return mean(run_search(of(epochs), epoch_s, args, lost_s, drawn) for epochs in searches) / args.nodes

    noticed, unnoticed = hours(NOTICED_S), hours(UNNOTICED_S)
    grid = hours(NOTICED_S, lambda epochs: [args.max_epochs] * len(epochs))
    serve = read_rows("serve")["bintally_int8"]["c8"]["rps"]
    capacity = SERVER_REPLICAS * serve
    by_proxy = min(capacity, args.proxy_per_s)
    return {
        "epoch": {
            "photos_per_s_of_a_node": per_s,
            "requests_per_s_of_a_node": per_s * PREFIXES,
            "nodes_until_s3_decides": args.s3_per_s / alone_per_s,
            "gpus_want_per_s": gpu_per_s,
            "cores_decode_per_s": decode_per_s,
            "minutes": epoch_s / 60,
            "gb_from_s3": bytes_gb,
            "gbit_per_s_of_a_node": per_s * args.photo_kb * 8 / 1e6,
            "dollars": epoch_s / 3600 * (args.head_per_hour + args.spot_per_hour),
        },
        "search": {
            "epochs": mean(map(sum, searches)),
            "epochs_without_asha": float(args.num_trials * args.max_epochs),
            "hours": noticed,
            "hours_without_notice": unnoticed,
            "dollars": noticed * per_hour,
            "dollars_on_demand": mean(map(sum, searches)) * epoch_s / 3600 / args.nodes * on_demand_per_hour,
            "dollars_without_asha": grid * per_hour,
            "interruptions": noticed * args.nodes * args.interruptions_per_hour,
        },
        "million_photos": {
            "per_s_of_a_node": capacity,
            "hours_at_that_load": 1e6 / (capacity * args.server_load) / 3600,
            "dollars": 1e6 / (capacity * args.server_load) / 3600 * args.server_per_hour,
            "per_s_by_rays_proxy": by_proxy,
            "hours_by_rays_proxy": 1e6 / (by_proxy * args.server_load) / 3600,
            "dollars_by_rays_proxy": 1e6
            / (by_proxy * args.server_load)
            / 3600
            * (args.server_per_hour + args.head_per_hour),
        },
    }


def main() -> None:
    """Parse, simulate, print."""
    import tyro

    with readable_errors():
        args = tyro.cli(partial(ScaleArgs), description=__doc__)
        checks, figures = check_against_baselines(), plan(args)
        print(f"{'measured here':<40}{'measured':>10}{'simulated':>11}")
        for name, measured, said in checks:
            print(f"{name:<40}{measured:>10.1f}{said:>11.1f} ({said / measured - 1:+.0%})")
        for name, values in figures.items():
            print(f"\n{name.replace('_', ' ')}")
            for key, value in values.items():
                print(f"  {key.replace('_', ' '):<38}{value:>10.2f}")
        if args.json:
            settings = {key: value for key, value in asdict(args).items() if key not in ("json", "quick")}
            args.json.write_text(json.dumps({"checks": checks, **figures, "assumed": settings}, indent=2) + "\n")


if __name__ == "__main__":
    main()

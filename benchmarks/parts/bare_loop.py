"""The limit of any server: decode and count in one thread, photo after photo. One line of JSON.

python benchmarks/parts/bare_loop.py CHECKPOINT PHOTO RUNTIME SECONDS
"""

import json
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.parts.served_model import Bare

BATCHES = (1, 8)


def measure(bare: Bare, photo: bytes, batch: int, seconds: float) -> dict[str, float]:
    """Wall and CPU time of a batch; of CPU, all of this process."""
    bare.count([bare.decode(photo)] * batch)
    walls_s: list[float] = []
    begun, cpu_begun = time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < seconds or not walls_s:
        started = time.perf_counter()
        bare.count([bare.decode(photo) for _ in range(batch)])
        walls_s.append(time.perf_counter() - started)
    spent_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu_begun
    num_photos = batch * len(walls_s)
    return {
        "rps": round(num_photos / spent_s, 2),
        "batch_ms": round(1000 * median(walls_s), 2),
        "cpu_ms": round(1000 * cpu_s / num_photos, 3),
    }


def main() -> None:
    """Measure and print."""
    checkpoint, photo, runtime, seconds = sys.argv[1:]
    bare = Bare(checkpoint, runtime)
    data = Path(photo).read_bytes()
    print(json.dumps({str(batch): measure(bare, data, batch, float(seconds)) for batch in BATCHES}), flush=True)


if __name__ == "__main__":
    main()

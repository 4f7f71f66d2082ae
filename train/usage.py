"""What the machine does while it trains: CPU, memory and GPU use, sampled by a thread at a fixed interval."""

import ctypes
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Final

import numpy as np
import torch

from train.health_record import Usage

INTERVAL_S: Final = 0.5  # Profiler's
MAX_POINTS: Final = 120  # of an epoch in its summary


@dataclass(frozen=True, slots=True)
class UsageSample:
    """One look at the machine; shares are 0..1."""

    cpu_s: float
    """Seconds of CPU that the process used so far."""
    memory: float
    """Share of the memory in use."""
    gpu: float | None
    """Share of the last moments in which the GPU computed; None without one."""


Probe = Callable[[], UsageSample]
"""Where samples come from; takes well under a millisecond."""


class ProcessProbe:
    """This process and, if it trains on a GPU, that GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._gpu = open_gpu(device) if device.type == "cuda" else None
        self._total = _gpu_bytes(device) if device.type == "cuda" else _ram_bytes()

    def __call__(self) -> UsageSample:
        """Look once."""
        times = os.times()
        used = torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else private_bytes()
        return UsageSample(times.user + times.system, used / self._total, self._gpu() if self._gpu else None)


def private_bytes() -> int:
    """Memory that this process holds for itself; Ray's shared object store, whose pages come and go, is not in it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux: the peak, which can at least not hide growth
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def _ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu_bytes(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def open_gpu(device: torch.device) -> Callable[[], float | None] | None:
    """A function that reads how busy the GPU is, 0..1, from the driver's own library; None where that is missing.

    By UUID, since CUDA_VISIBLE_DEVICES renumbers what torch sees and not what the driver sees.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle = ctypes.c_void_p()
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)):
        return None

    def busy() -> float | None:
        rates = _Utilization()
        failed = nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(rates))
        return None if failed else rates.gpu / 100

    return busy


@dataclass(slots=True)
class UsageSampler:
    """A thread that samples until it is left; `drain` gives what came since the last call."""

    probe: Probe
    on_tick: Callable[[], None] = lambda: None
    """Called after each sample, in the thread."""
    interval_s: float = INTERVAL_S
    _samples: list[tuple[float, UsageSample]] = field(default_factory=list)
    _started: float = field(default_factory=time.perf_counter)
    _lock: Lock = field(default_factory=Lock)
    _over: Event = field(default_factory=Event)
    _thread: Thread | None = None

    def __enter__(self) -> "UsageSampler":
        self._thread = Thread(target=self._run, name="usage", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            with self._lock:
                self._samples.append((time.perf_counter() - self._started, self.probe()))
            self.on_tick()
            self._over.wait(self.interval_s)

    def drain(self) -> Usage:
        """The samples since the last call; the newest also begins the next ones, for the CPU's differences."""
        with self._lock:
            samples, self._samples = self._samples, self._samples[-1:]
        return summarize_usage(samples)


def num_cores() -> int:
    """Cores that this process may use; a container often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def summarize_usage(samples: Sequence[tuple[float, UsageSample]]) -> Usage:
    """Samples as (seconds, sample) in order of time, thinned to MAX_POINTS means."""
    pairs = list(pairwise(samples))
    cores = num_cores()
    cpu = [(b.cpu_s - a.cpu_s) / max(1e-6, t_b - t_a) / cores for (t_a, a), (t_b, b) in pairs]
    later = [sample for _, (_, sample) in pairs]
    gpu = [sample.gpu for sample in later if sample.gpu is not None]
    return Usage(
        seconds=_thinned([t for _, (t, _) in pairs]),
        cpu=_thinned([min(1.0, share) for share in cpu]),
        memory=_thinned([sample.memory for sample in later]),
        gpu=_thinned(gpu),
        gpu_p5=float(np.percentile(gpu, 5)) if gpu else None,
        gpu_p95=float(np.percentile(gpu, 95)) if gpu else None,
    )


def _thinned(values: Sequence[float]) -> list[float]:
    """Means of neighbours, at most MAX_POINTS of them."""
    size = -(-len(values) // MAX_POINTS) or 1
    return [float(np.mean(values[at : at + size])) for at in range(0, len(values), size)]

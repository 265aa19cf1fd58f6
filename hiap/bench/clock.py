"""Times that can be compared: neighbouring runs in one process; and what a call takes at its peak."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from hiap.bench.report import Quartiles, Timing

SHORT = 0.2  # seconds: to fill the caches anew is no part of a longer call that one could measure
BLOCK = SHORT / 10  # seconds of short calls that are timed as one, so that the clock's steps do not count


def alternate(
    runs: dict[str, Callable[[], Any]], reference: str, settings: Timing, device: torch.device
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the seconds of each call and their ratio to the reference's, (rounds,) per name. Each has the reference
    right beside it, before or after it in turn, so that both meet the machine in one state. Calls are timed as in
    service, after another of the same network: a small one that follows a large one waits for its own weights, which
    fit into the caches if nothing else runs."""
    clock = time.process_time if settings.clock == "cpu" else time.perf_counter

    def seconds_of(run: Callable[[], Any], times: int) -> float:
        wait(device)
        start = clock()
        for _ in range(times):
            run()
        wait(device)
        return (clock() - start) / times

    def timed(name: str) -> float:
        first = seconds_of(runs[name], 1)
        return first if first > SHORT else seconds_of(runs[name], 1 + int(BLOCK / max(first, 1e-6)))

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    others = [name for name in runs if name != reference] or [reference]
    for i in range(settings.warmup + settings.rounds):
        for name in others:
            pair = {n: timed(n) for n in ((reference, name) if i % 2 else (name, reference))}
            if i >= settings.warmup:
                ratios[name].append(pair[name] / pair[reference])
                for n, value in pair.items():
                    seconds[n].append(value)
    ratios[reference] = [1.0]
    return {n: np.array(v) for n, v in seconds.items()}, {n: np.array(v) for n, v in ratios.items()}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quartiles(values: Any) -> Quartiles:
    """Return lower quartile, median and upper quartile."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).round(6).tolist()
    return low, middle, high


def share(ratio: float, macs: int, reference: int) -> float:
    """Return how much of the multiply-adds removed is time saved: (1 - ratio) / (1 - macs / reference)."""
    return round((1 - ratio) / (1 - macs / reference), 4)


def peak_memory(run: Callable[[], Any], device: torch.device) -> int:
    """Count the bytes that one call allocates at its peak, beyond what it found allocated."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    assert trace.profiler is not None
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    return int(np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max())

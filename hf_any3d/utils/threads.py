"""Threads of torch on machines that are shared, set before torch is loaded, which reads the environment only once."""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def share_processors() -> None:
    """Let idle threads of torch sleep, and start no more than the process may run at once; the user's settings win.

    At the end of each operation threads wait for each other. By default they spin, which takes processors from those
    that still work: beside other busy programs, training is many times slower, and on a quiet machine as fast.
    """
    if "torch" in sys.modules:
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Of an affinity torch knows, of a container's limit it does not.
    count = available_processors()
    if count < _in_affinity():
        os.environ.setdefault("OMP_NUM_THREADS", str(count))


def available_processors() -> int:
    """Return how many processors the process may use, by its affinity and by the limit of its container."""
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    except OSError:  # not on Linux
        return _in_affinity()
    # A part of a processor counts as one.
    return min(_in_affinity(), *map(math.ceil, processor_limits(groups, Path("/sys/fs/cgroup"))), sys.maxsize)


def _in_affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_limits(groups: str, root: Path) -> Iterator[float]:
    """Yield the limits on processors of the control groups of a process, and of the groups that they are in.

    `groups` is the text of /proc/self/cgroup: a line `number:controllers:path` for each hierarchy below `root`, of
    version 2 without controllers.
    """
    for line in groups.splitlines():
        _, controllers, place = line.split(":", 2)
        # Of version 1, only the hierarchy of processors has their limits.
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = root / ("cpu" if controllers else "") / place.lstrip("/")
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        # The path is that outside of a container, whose own group is then the root.
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            try:
                quota, period = " ".join((folder / file).read_text(encoding="utf-8") for file in files).split()
            except (OSError, ValueError):
                continue
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)

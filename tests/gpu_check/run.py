"""Rows of results, time budgets and clocks, shared by the sections of the check."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Row = dict[str, Any]


@dataclass
class Run:
    """Results of a section.

    Args:
        device: Device under test.
        small: Whether sizes are tiny, to try the program.
        seconds: Time budget; what is not reached in it counts as failed. None for as long as it takes.
    """

    device: torch.device
    small: bool
    seconds: float | None
    rows: list[Row] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def check(self, name: str, function: Callable[[], Row]) -> None:
        """Run one check and add its row; an error is a row too.

        Args:
            name: Name of the row.
            function: Returns figures, and with "ok" whether the check has passed.
        """
        if self.seconds is not None and time.monotonic() - self.started > self.seconds:
            self.rows.append({"name": name, "ok": False, "note": f"not reached in {self.seconds:.0f} s"})
            return
        begun = time.monotonic()
        try:
            row = {"name": name, "ok": True} | function()
        except Exception as error:  # a failed check must not hide the others
            reason = str(error).strip().partition("\n")[0]
            row = {"name": name, "ok": False, "note": f"{type(error).__name__}: {reason}"}
            row["traceback"] = traceback.format_exc()
        finally:
            if self.on_gpu:
                torch.cuda.set_sync_debug_mode("default")
        row["seconds"] = round(time.monotonic() - begun, 2)
        self.rows.append(row)
        print(f"  {'ok    ' if row['ok'] else 'FAILED'} {name} {row.get('note', '')} {row['seconds']} s", flush=True)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def milliseconds(self, function: Callable[[], Any], repeats: int = 10) -> float:
        """Return the median time of a call after two warm-up calls, the device's work included."""
        times = []
        for number in range(2 + (repeats if self.on_gpu else 1)):
            self.synchronize()
            begun = time.perf_counter()
            function()
            self.synchronize()
            if number > 1:
                times.append(1000 * (time.perf_counter() - begun))
        return statistics.median(times)

    def peak_bytes(self, function: Callable[[], Any]) -> int | None:
        """Return the largest memory that a call allocates beyond what it finds; None on the CPU."""
        if not self.on_gpu:
            return None
        self.synchronize()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        function()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device) - before

    def kernels(self, function: Callable[[], Any]) -> int | None:
        """Return how many kernels, copies and fills a call launches; None on the CPU."""
        if not self.on_gpu:
            return None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            function()
            self.synchronize()
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest expected value; NaN is infinite."""
    if not found.isfinite().all():
        return float("inf")
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))

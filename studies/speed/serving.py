"""Load `hf-any3d serve` on this machine at several rates, beyond what it can answer, and back.

    python -m studies.speed.serving --seconds 5 --output serving.json

Requests arrive at even intervals, however long answers take. First some clients that always wait for their answer
find the capacity; rates are shares of it. The program fails unless the server answers 429 and nothing worse at
overload, keeps the time of accepted requests bounded, and answers everything afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import numpy as np

from hf_any3d.utils.atomic_files import write_json

CLIENTS = 8
"""Clients that find the capacity."""
SHARES = (0.25, 0.5, 0.8, 4.0, 0.25)
"""Offered load, as shares of the capacity; the one before the last is the overload."""
_POINTS = 1024
Send = Callable[[], Coroutine[Any, Any, int]]


@dataclass(frozen=True)
class Measured:
    """Outcome of a load.

    Attributes:
        offered: Requests per second that were sent.
        answered: Requests per second with status 200.
        statuses: Number of requests by status; 0 stands for a broken connection.
        p50: Median of the seconds of answered requests.
        p95: The same for 95 %.
        p99: The same for 99 %.
    """

    offered: float
    answered: float
    statuses: dict[int, int]
    p50: float
    p95: float
    p99: float


def summary(results: list[tuple[int, float]], seconds: float, offered: float | None = None) -> Measured:
    """Summarize statuses and times.

    Args:
        results: Status and seconds of each request.
        seconds: Time of all.
        offered: Requests per second that were sent; by default those that were answered.
    """
    times = [spent for status, spent in results if status == 200]
    quantiles = np.quantile(times, [0.5, 0.95, 0.99]) if times else [float("nan")] * 3
    rate = len(times) / seconds
    statuses = dict(Counter(status for status, _ in results))
    return Measured(rate if offered is None else offered, rate, statuses, *map(float, quantiles))


async def closed_loop(send: Send, clients: int, seconds: float) -> Measured:
    """Let clients send requests one after the other."""
    results: list[tuple[int, float]] = []
    start = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() < start + seconds:
            results.append(await _timed(send))

    await asyncio.gather(*(client() for _ in range(clients)))
    return summary(results, time.perf_counter() - start)


async def open_loop(send: Send, rate: float, seconds: float, least: int = 1) -> Measured:
    """Send requests at even intervals, `least` of them at least, and wait for all answers."""
    start, tasks = time.perf_counter(), []
    for number in range(max(least, round(rate * seconds))):
        await asyncio.sleep(max(0, start + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(_timed(send)))
    sent = time.perf_counter() - start
    results = await asyncio.gather(*tasks)
    return summary(results, time.perf_counter() - start, len(tasks) / sent)


async def _timed(send: Send) -> tuple[int, float]:
    start = time.perf_counter()
    status = await send()
    return status, time.perf_counter() - start


def check(rows: list[Measured]) -> None:
    """Check the overload, and what follows it.

    Raises:
        AssertionError: The server failed other than by 429, did not refuse, or did not recover.
    """
    *_, overload, after = rows
    for row in rows:
        assert set(row.statuses) <= {200, 429}, f"statuses {row.statuses}; expected 200 and 429 alone"
    assert overload.statuses.get(429, 0) > 0, f"no request of {overload.statuses} was refused at overload"
    assert overload.statuses.get(200, 0) > 0, "nothing was answered at overload"
    assert set(after.statuses) == {200}, f"statuses {after.statuses} after the overload; expected 200 alone"
    assert after.p50 < overload.p50, f"median {after.p50:.3f} s after the overload, {overload.p50:.3f} s in it"


def table(rows: list[Measured], capacity: Measured) -> str:
    """Return the figures as a table in Markdown."""
    lines = [
        "| load | offered /s | answered /s | 429 | p50 | p95 | p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    names = [f"{CLIENTS} clients that wait", *(f"{share:g} of that" for share in SHARES)]
    for name, row in zip(names, [capacity, *rows], strict=True):
        times = " | ".join(f"{1000 * value:.0f} ms" for value in (row.p50, row.p95, row.p99))
        refused = row.statuses.get(429, 0) / sum(row.statuses.values())
        lines.append(f"| {name} | {row.offered:.0f} | {row.answered:.0f} | {100 * refused:.0f} % | {times} |")
    return "\n".join(lines)


def classify_request(points: int) -> tuple[bytes, dict[str, str]]:
    """Return the body of a request with a random cloud and its headers, made once for fast clients."""
    file = io.BytesIO()
    np.save(file, np.random.default_rng(0).normal(size=(points, 3)).astype(np.float32))
    form = httpx.Request("POST", "http://server", files={"file": ("cloud.npy", file.getvalue())})
    return form.read(), {"content-type": form.headers["content-type"]}


async def measure(address: str, seconds: float, queue: int) -> tuple[Measured, list[Measured]]:
    """Return the capacity of a server, and what each share of it as load brings.

    Args:
        address: Address of the server.
        seconds: Time of each load.
        queue: Requests that the server accepts at a time; the overload has four times as many at least, since the
            client may be too slow to send more than the server answers.
    """
    content, kind = classify_request(_POINTS)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60, trust_env=False) as client:

        async def send() -> int:
            try:
                return (await client.post("/v1/classify", content=content, headers=kind)).status_code
            except httpx.TransportError:
                return 0

        await closed_loop(send, CLIENTS, min(2.0, seconds))  # warms up
        capacity = await closed_loop(send, CLIENTS, seconds)
        rows = []
        for share in SHARES:
            least = 4 * queue if share > 1 else 1
            rows.append(await open_loop(send, share * capacity.answered, seconds, least))
        return capacity, rows


def start_server(*options: str) -> tuple[subprocess.Popen, str]:
    """Start `hf-any3d serve` on a free port; returns the process and its address."""
    command = [sys.executable, "-m", "hf_any3d", "serve", "--port", "0", *options]
    log = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://\S+:\d+", line):
            return process, found[0]
    log.seek(0)
    raise RuntimeError(f"{' '.join(command)} ended with code {process.wait()}: {log.read()[-2000:]}")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or name of a classifier; by default that of the package")
    parser.add_argument("--seconds", type=float, default=5.0, help="time of each load")
    parser.add_argument("--queue", type=int, default=16, help="requests that the server accepts at a time")
    parser.add_argument("--output", help="JSON file for the figures")
    arguments = parser.parse_args()
    options = ["--max-queue", str(arguments.queue)]
    process, address = start_server(*([arguments.model] if arguments.model else []), *options)
    try:
        capacity, rows = asyncio.run(measure(address, arguments.seconds, arguments.queue))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, "the server did not end in an orderly way"
    finally:
        process.kill()
    print(table(rows, capacity))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"\n{machine}; at most {arguments.queue} requests at a time, {_POINTS} points each")
    if arguments.output:
        shown = {"machine": machine, "capacity": asdict(capacity), "loads": [asdict(row) for row in rows]}
        write_json(arguments.output, shown)
    check(rows)
    print("429 at overload and nothing worse; everything answered afterwards")


if __name__ == "__main__":
    main()

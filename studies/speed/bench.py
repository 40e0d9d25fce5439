"""Run the benchmarks one after the other, write their ratios, and compare these with the committed ones.

    python -m studies.speed.bench
    python -m studies.speed.bench --only any2point kernels --output bench.json

Every benchmark is a program of this folder in a process of its own. It times its sides in turns, so that its ratios
depend little on the machine and on other work there, and fails if they disagree numerically; then this program goes
on, and ends with exit code 1. Changes of ratios are printed, not judged. Figures are written after each benchmark, and
`--resume` measures only those that the file does not have.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers

from hf_any3d.utils.atomic_files import write_json
from hf_any3d.version import __version__

COMMITTED = Path(__file__).parent / "results" / "bench.json"
NOTABLE = 0.1
"""Relative change of a ratio that is marked; smaller ones are noise on a busy machine."""


@dataclass(frozen=True)
class Benchmark:
    """A program and the ratios that are read from its JSON file.

    Attributes:
        program: Module of this folder, and its arguments.
        ratios: Takes the content of the file; returns ratios by name.
    """

    program: str
    ratios: Callable[[Any], dict[str, float]]


def wrapper_ratios(result: Any) -> dict[str, float]:
    """Return time and saved bytes over those of the bare frozen layers, and those of the transcription over ours."""
    rows, inference = result["rows"], result["inference"]
    whole, indexed = rows["whole model"], rows["whole model, indexed before"]
    found = {
        "time / bare layers": whole["times_bare_time"],
        "time / bare layers, indexed before": indexed["times_bare_time"],
        "saved bytes / bare layers": whole["times_bare_memory"],
        "pipeline / bare layers": inference["pipeline"]["times_bare_time"],
    }
    half = {
        "frozen layers in bfloat16": rows.get("frozen layers in bfloat16, indexed before"),
        "the same under autocast": rows.get("the same under autocast"),
        "pipeline in bfloat16": inference.get("pipeline, whole model in bfloat16"),
    }
    found |= {f"{name} / bare layers": row["times_bare_time"] for name, row in half.items() if row is not None}
    if (written := rows.get("transcription")) is not None:
        found["transcription / ours, time"] = written["times_bare_time"] / whole["times_bare_time"]
        if (mixed := half["the same under autocast"]) is not None:
            found["transcription in float32 / ours under autocast, time"] = (
                written["times_bare_time"] / mixed["times_bare_time"]
            )
        found["transcription / ours, saved bytes"] = written["times_bare_memory"] / whole["times_bare_memory"]
    return found


def pretraining_ratios(result: Any) -> dict[str, float]:
    """Return how much faster and smaller a step of ACT is than its transcription."""
    ours = {name: row for name, row in result["rows"].items() if name.startswith("ours")}
    return {f"transcription / {name}, time": row["times_faster"] for name, row in ours.items()} | {
        f"transcription / {name}, saved bytes": row["times_fewer_bytes"] for name, row in ours.items()
    }


def aligned_ratios(result: Any) -> dict[str, float]:
    """Return the time of aligned encoders over that of their bare blocks."""
    rows = {one["preset"]: one["rows"]["whole encoder"] for one in result["results"]}
    return {f"{preset}, time / bare blocks": row["times_bare"] for preset, row in rows.items()}


def voxel_ratios(result: Any) -> dict[str, float]:
    """Return how much faster Point Transformer V3 is than its transcription."""
    passes = {name: result[name] for name in ("forward", "step") if name in result}
    return {f"transcription / ours, {name}": row["transcription"] / row["ours"] for name, row in passes.items()}


def operation_ratios(result: Any) -> dict[str, float]:
    """Return how much faster point operations are than their usual forms."""
    return {f"usual / ours, {row['operation']}, {row['shape']}": row["ratio"] for row in result["rows"]}


def kernel_ratios(result: Any) -> dict[str, float]:
    """Return the time of fused operations over that of their plain forms."""
    rows = result["rows"]
    return {f"{row['step']}, {row['operation']}": row["fused_seconds"] / row["plain_seconds"] for row in rows}


def chat_ratios(result: Any) -> dict[str, float]:
    """Return the time of each way to answer over that of the first of its comparison."""
    return {f"{row['comparison']}: {row['side']}": row["times"] for row in result["rows"] if row["times"] != 1}


def export_ratios(result: Any) -> dict[str, float]:
    """Return the time of exported programs over that of the model."""
    return {
        f"{name} / eager, batch {batch}": value / times["eager"]
        for batch, times in result["ms_per_cloud"].items()
        for name, value in times.items()
        if name != "eager"
    }


BENCHMARKS = {
    "any2point": Benchmark("any2point_wrapper --preset clip-scan --bfloat16", wrapper_ratios),
    "any2point-defaults": Benchmark("any2point_wrapper --preset clip-text --bfloat16", wrapper_ratios),
    "any2point-minilm": Benchmark("any2point_wrapper --preset minilm --bfloat16 --repeats 7", wrapper_ratios),
    "act": Benchmark("act_pretraining", pretraining_ratios),
    "aligned": Benchmark("aligned_encoders --presets openshape uni3d-base", aligned_ratios),
    "voxels": Benchmark("point_transformer_v3 --size concerto_small --voxels 30000", voxel_ratios),
    "point-ops": Benchmark("point_ops", operation_ratios),
    "kernels": Benchmark("kernels", kernel_ratios),
    "chat": Benchmark("chat --preset small --only batches tokens turns", chat_ratios),
    "export": Benchmark("export", export_ratios),
}


def machine() -> dict[str, Any]:
    """Describe the machine and the libraries that were timed."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_any3d": __version__,
    }


def processor_name() -> str:
    """Return the processor's name as Linux reports it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def run(benchmark: Benchmark) -> dict[str, Any]:
    """Run a benchmark; returns its command, seconds, and its ratios or its error."""
    words = shlex.split(benchmark.program)
    entry: dict[str, Any] = {"command": f"python -m studies.speed.{benchmark.program}"}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "figures.json"
        program = [sys.executable, "-m", f"studies.speed.{words[0]}", *words[1:], "--output", str(output)]
        start = time.perf_counter()
        done = subprocess.run(program, capture_output=True, text=True, errors="replace")
        entry["seconds"] = round(time.perf_counter() - start, 1)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            return entry | {"error": lines[-1] if lines else f"exit code {done.returncode}"}
        result = json.loads(output.read_text())
    return entry | {"ratios": {name: round(value, 4) for name, value in benchmark.ratios(result).items()}}


def table(entries: dict[str, Any], committed: dict[str, Any]) -> str:
    """Format ratios next to the committed ones."""
    lines = ["| benchmark | ratio | now | committed | change |", "|---|---|---|---|---|"]
    for name, entry in entries.items():
        if "error" in entry:
            lines.append(f"| {name} | failed: {entry['error']} | – | – | – |")
        before = committed.get(name, {}).get("ratios", {})
        for what, ratio in entry.get("ratios", {}).items():
            known = before.get(what)
            change = None if known is None else ratio / known - 1
            mark = "" if change is None or abs(change) <= NOTABLE else " (!)"
            compared = "– | –" if change is None else f"{known:.2f} | {change:+.0%}{mark}"
            lines.append(f"| {name} | {what} | {ratio:.2f} | {compared} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmarks; print and write their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS), help="default: all")
    parser.add_argument("--against", type=Path, default=COMMITTED, help="figures to compare with")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--resume", action="store_true", help="keep the figures that --output has already")
    options = parser.parse_args(arguments)
    if options.resume and options.output is None:
        parser.error("--resume needs --output, the file to continue")
    committed = json.loads(options.against.read_text())["benchmarks"] if options.against.exists() else {}
    entries: dict[str, Any] = {}
    if options.resume and options.output.exists():
        kept = json.loads(options.output.read_text())["benchmarks"]
        entries = {name: entry for name, entry in kept.items() if "error" not in entry}
    for number, name in enumerate(options.only, 1):
        if name in entries:
            continue
        print(f"{number} of {len(options.only)}: {BENCHMARKS[name].program}", file=sys.stderr, flush=True)
        entries[name] = run(BENCHMARKS[name])
        if options.output is not None:
            write_json(options.output, {"machine": machine(), "benchmarks": entries})
    print(table(entries, committed))
    failed = [name for name, entry in entries.items() if "error" in entry]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

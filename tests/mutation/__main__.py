"""The command: record what tests enter, draw changes, try them, print the share that was noticed."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path

from tests.mutation.mutants import ROOT, draw
from tests.mutation.recording import record
from tests.mutation.running import read_recording, summarize, try_mutants

ACCEPTED = Path(__file__).with_name("accepted.json")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="changes to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/mutation"), help="folder of recording and results"
    )
    parser.add_argument("--only", default="", help="try only changes whose name contains this text")
    parser.add_argument("--record", action="store_true", help="record all tests anew first")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the steps; results are kept line by line, so an interrupted run goes on where it stopped."""
    options = parse()
    options.output = options.output.resolve()
    recording = options.output / "recording.jsonl"
    if options.worker is None:
        if options.record or not recording.is_file():
            record(recording, options.workers)
    mutants = [mutant for mutant in draw(options.count, options.seed) if options.only in mutant.name]
    # In an order of its own, so that what an interrupted run tried is a fair sample too.
    random.Random(options.seed).shuffle(mutants)
    names = {mutant.name for mutant in mutants}
    if options.worker is not None:
        done = {row["mutant"] for row in _results(options.output)}
        mine = [m for m in mutants if m.name not in done][options.worker :: options.workers]
        rows = read_recording(recording)
        with (options.output / f"results-{options.worker}.jsonl").open("a", encoding="utf-8") as file:
            for row in try_mutants(mine, rows, options.worker):
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(f"{row['outcome']:9s} {row['seconds']:6.1f} s  {row['mutant'][:140]}", flush=True)
        return
    command = [sys.executable, "-m", "tests.mutation", "--count", str(options.count), "--seed", str(options.seed)]
    command += ["--workers", str(options.workers), "--output", str(options.output), "--only", options.only]
    workers = [subprocess.Popen([*command, "--worker", str(n)], cwd=ROOT) for n in range(options.workers)]
    failed = [worker.wait() for worker in workers]
    results = [row for row in _results(options.output) if row["mutant"] in names]
    accepted = json.loads(ACCEPTED.read_text(encoding="utf-8"))
    print(summarize(results, accepted))
    unexplained = [r for r in results if r["outcome"] in ("survived", "untested") and r["mutant"] not in accepted]
    sys.exit(bool(any(failed) or len(results) < len(mutants) or len(unexplained) > 0.05 * len(mutants)))


def _results(folder: Path) -> list[dict]:
    lines = [line for file in sorted(folder.glob("results-*.jsonl")) for line in file.read_text("utf-8").splitlines()]
    return list({row["mutant"]: row for row in map(json.loads, lines)}.values())


if __name__ == "__main__":
    main()

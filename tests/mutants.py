"""Break the package in drawn places and count how many of these mutants the tests notice; run by hand.

    python -m tests.mutants draw --seed 0 --count 30
    python -m tests.mutants run --name NAME [--only NUMBER …]

`draw` writes `tests/mutants.json`: places in the code of the three systems and of what carries them (`AREAS`), each
with one change: another sign, another bound, another axis, or a line left out. `run` makes a copy of the checkout,
applies one mutant at a time, and runs the tests of its area, then the common suites, up to the first failure. What it
finds is kept under NAME in the same file, so that the tests before and after a change can be compared. A mutant that
no test notices may also be one that changes nothing, so only counts of the same list mean something.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests import stages

ROOT = Path(__file__).resolve().parents[1]
DRAWN = Path(__file__).with_suffix(".json")
COMMON = ("tests/common",)


class Area(NamedTuple):
    """Sources that are broken together, and the tests of their folder."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]


AREAS = {
    "any2point": Area(("modeling/any2point",), ("tests/modeling/any2point",)),
    "act": Area(("modeling/act",), ("tests/modeling/act",)),
    "minigpt3d": Area(("modeling/minigpt3d",), ("tests/modeling/minigpt3d",)),
    "tuners": Area(("hf_any3d/tuners",), ("tests/tuners",)),
    "loading": Area(("modeling/pretrained_parts",), ("tests/modeling/pretrained_parts",)),
    "processors": Area(("hf_any3d/processing",), ("tests/processing",)),
    "collator": Area(
        ("hf_any3d/data/collator.py", "hf_any3d/data/transforms.py", "hf_any3d/data/point_arrays.py"),
        ("tests/data/test_collator.py", "tests/data/test_transforms.py", "tests/data/test_point_arrays.py"),
    ),
    "readers": Area(("hf_any3d/data/files",), ("tests/data/files",)),
}
KINDS = ("sign", "bound", "axis", "dropped line")
OPERATORS = {ast.Add: "-", ast.Sub: "+"}
BOUNDS = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
AXES = {0: 1, 1: 0, 2: 1, -1: -2, -2: -1}


class Mutant(NamedTuple):
    """One change of one line.

    Attributes:
        area: Key of `AREAS`.
        kind: One of `KINDS`.
        file: Path in the checkout.
        before: The line as it is.
        after: The line of the mutant.
        occurrence: Which of the equal lines of the file is meant, from 0.
    """

    area: str
    kind: str
    file: str
    before: str
    after: str
    occurrence: int


def changes_of(node: ast.AST, lines: list[str]) -> Iterator[tuple[str, int, str]]:
    """Yield the kinds, line numbers (from 0) and new lines of what can be changed in one node of a source."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and node.left.end_lineno == node.right.lineno:
        if isinstance(node.left, ast.Constant) and isinstance(node.left.value, str):
            return
        yield (
            "sign",
            *replaced(
                lines, node.left.end_lineno, node.left.end_col_offset, node.right.col_offset, OPERATORS[type(node.op)]
            ),
        )
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in BOUNDS:
        (right,) = node.comparators
        if node.left.end_lineno == right.lineno:
            bound = BOUNDS[type(node.ops[0])]
            yield "bound", *replaced(lines, node.left.end_lineno, node.left.end_col_offset, right.col_offset, bound)
    if isinstance(node, ast.keyword) and node.arg in ("dim", "axis"):
        try:
            axis = AXES[ast.literal_eval(node.value)]
        except (ValueError, KeyError, TypeError):
            return
        number, line = node.value.lineno - 1, lines[node.value.lineno - 1].encode()
        changed = line[: node.value.col_offset] + str(axis).encode() + line[node.value.end_col_offset :]
        yield "axis", number, changed.decode()
    statement = isinstance(node, (ast.Expr, ast.AugAssign)) and not isinstance(
        getattr(node, "value", None), ast.Constant
    )
    again = (
        isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and uses(node.value, node.targets[0].id)
    )
    if (statement or again) and node.lineno == node.end_lineno:
        line = lines[node.lineno - 1]
        yield "dropped line", node.lineno - 1, line[: len(line) - len(line.lstrip())] + "pass"


def replaced(lines: list[str], number: int, start: int, end: int, operator: str) -> tuple[int, str]:
    """Return a line's number from 0, and the line with another operator between two operands."""
    line = lines[number - 1].encode()
    between = re.sub(rb"[-+<>]=?", operator.encode(), line[start:end], count=1)
    return number - 1, (line[:start] + between + line[end:]).decode()


def uses(value: ast.expr, name: str) -> bool:
    """Return whether an expression uses a name."""
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(value))


def mutants_of(area: str, path: Path) -> list[Mutant]:
    """Return all mutants of a file: of what its functions do, but not of what they say when they raise."""
    text = path.read_text(encoding="utf-8")
    lines, found = text.splitlines(), []
    raising: set[int] = set()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            raising.update(range(node.lineno - 1, node.end_lineno))
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            for kind, number, after in changes_of(node, lines):
                before = lines[number]
                if number not in raising and before != after:
                    occurrence = lines[:number].count(before)
                    found.append(Mutant(area, kind, path.relative_to(ROOT).as_posix(), before, after, occurrence))
    return list(dict.fromkeys(found))


def draw(seed: int, count: int) -> list[Mutant]:
    """Draw mutants: areas and kinds by turns, one a file as long as there are others."""
    generator, drawn = random.Random(seed), []
    pools: dict[tuple[str, str], list[Mutant]] = {}
    for area, (sources, _) in AREAS.items():
        for source in sources:
            files = sorted((ROOT / source).rglob("*.py")) or [ROOT / source]
            for file in files:
                for mutant in mutants_of(area, file):
                    pools.setdefault((area, mutant.kind), []).append(mutant)
    turns = [
        (area, KINDS[(number + turn) % len(KINDS)]) for turn in range(len(KINDS)) for number, area in enumerate(AREAS)
    ]
    for turn in turns:
        if len(drawn) < count and pools.get(turn):
            taken = {mutant.file for mutant in drawn}
            fresh = [mutant for mutant in pools[turn] if mutant.file not in taken]
            drawn.append(generator.choice(fresh or pools[turn]))
    return drawn


def broken(text: str, mutant: Mutant) -> str:
    """Return a source with a mutant; an error if its line is no longer there."""
    lines = text.split("\n")
    places = [number for number, line in enumerate(lines) if line == mutant.before]
    if mutant.occurrence >= len(places):
        raise SystemExit(f"{mutant.file}: the line {mutant.before.strip()!r} has changed; draw again")
    lines[places[mutant.occurrence]] = mutant.after
    return "\n".join(lines)


def notice(copy: Path, mutant: Mutant, most_seconds: float) -> tuple[str, float]:
    """Run tests up to the first failure; returns its name, or "" if all pass, and processor seconds.

    Tests that do not end within the limit notice nothing.
    """
    path = copy / mutant.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(broken(whole, mutant), encoding="utf-8")
    # What `make test` leaves to other targets notices nothing there.
    left_out = [f"--ignore={path}" for target in stages.TARGETS for path in stages.paths(target)]
    options = ["-n0", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *left_out]
    command = [sys.executable, "-m", "pytest", *options, *AREAS[mutant.area].tests, *COMMON]
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy)}

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(most_seconds), int(most_seconds) + 5))

    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, preexec_fn=limited)
    finally:
        path.write_text(whole, encoding="utf-8")
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
    failure = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.MULTILINE)
    if done.returncode == 0:
        return "", seconds
    if done.returncode < 0:
        return f"not within {most_seconds:.0f} s", seconds
    return failure[1] if failure else done.stdout[-200:] + done.stderr[-200:], seconds


def run(name: str, only: list[int], most_seconds: float) -> None:
    """Try mutants, keep what noticed each under a name, and print the count."""
    kept: dict[str, Any] = json.loads(DRAWN.read_text(encoding="utf-8"))
    results = kept.setdefault("noticed by", {}).setdefault(name, {})
    mutants = [Mutant(**mutant) for mutant in kept["mutants"]]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
        for file in filter(None, tracked.decode().split("\0")):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, copy / file)
        for number, mutant in enumerate(mutants):
            if only and number not in only or not only and str(number) in results:
                continue
            test, seconds = notice(copy, mutant, most_seconds)
            results[str(number)] = {"test": test, "seconds": round(seconds)}
            print(
                f"{number:3d} {mutant.kind:12s} {mutant.file}: {test or 'NOT NOTICED'} ({seconds:.0f} s)", flush=True
            )
            DRAWN.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    noticed = sum(bool(result["test"]) and "not within" not in result["test"] for result in results.values())
    print(f"{name}: {noticed} of {len(results)} noticed")


def main() -> None:
    """Draw or run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("draw", "run"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--name", default="now", help="of the tests that are tried")
    parser.add_argument("--only", type=int, nargs="*", default=[], help="numbers of mutants; by default those left")
    parser.add_argument("--most-seconds", type=float, default=1500, help="of a processor, for one mutant")
    options = parser.parse_args()
    if options.what == "draw":
        mutants = [mutant._asdict() for mutant in draw(options.seed, options.count)]
        DRAWN.write_text(json.dumps({"seed": options.seed, "mutants": mutants}, indent=1) + "\n", encoding="utf-8")
    else:
        run(options.name, options.only, options.most_seconds)


if __name__ == "__main__":
    main()

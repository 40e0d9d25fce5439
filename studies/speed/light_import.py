"""Measure what a model alone needs: the packages, their size, and the time of its import.

    python -m studies.speed.light_import

A program that only runs a model needs torch, transformers and numpy, with what these require themselves. All other
packages are hidden from a process of its own, which imports the model; its processor time is compared with that of
torch and transformers alone, and with `import hf_any3d`, which registers everything. Sizes are those of the files that
the installed packages list.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence

from packaging.requirements import Requirement

BASE = ("torch", "transformers", "numpy")
MODEL = "hf_any3d.modeling.point_transformer_v3"
# Hides packages as if they were not installed; the first argument has the names of those that are found.
_HIDE = """
import json, sys

allowed = {"hf_any3d", *json.loads(sys.argv.pop(1)), *sys.stdlib_module_names}

class Hide:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        # The standard library's settings of the build have a name of the platform.
        if top not in allowed and not top.startswith("_sysconfigdata"):
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hide, sys.meta_path)
"""
_TIMED = "import time; start = time.process_time(); {}; print(time.process_time() - start)"


def closure(names: Iterable[str], extras: Sequence[str] = ()) -> set[str]:
    """Return the installed packages that some packages require, these included.

    Args:
        names: The packages.
        extras: Extras of the first of them; the others have those that a requirement names, as in `laspy[lazrs]`.
    """
    first, *others = map(_normal, names)
    seen: set[tuple[str, str]] = set()
    waiting = [(first, extra) for extra in ("", *extras)] + [(name, "") for name in others]
    found: set[str] = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            required = map(Requirement, importlib.metadata.requires(name) or ())
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        for requirement in required:
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(_normal(requirement.name), chosen) for chosen in ("", *requirement.extras)]
    return found


def modules_of(packages: Collection[str]) -> set[str]:
    """Return the names by which packages are imported."""
    owners = importlib.metadata.packages_distributions().items()
    return {top for top, names in owners if {_normal(name) for name in names} & set(packages)}


def run_with(modules: Collection[str], program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own that finds no packages but some.

    Args:
        modules: Names of the modules that are found, beside the standard library and this package.
        program: Its text.
        *arguments: Its arguments.
    """
    command = [sys.executable, "-c", _HIDE + program, json.dumps(sorted(modules)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def installed_bytes(package: str) -> int:
    """Return the size of the files of an installed package."""
    files = importlib.metadata.files(package) or ()
    return sum(path.stat().st_size for file in files if (path := file.locate()).is_file())  # pyright: ignore


def import_seconds(modules: Collection[str], program: str, rounds: int) -> float:
    """Return the median processor seconds of an import."""
    times = []
    for _ in range(rounds):
        done = run_with(modules, _TIMED.format(program))
        if done.returncode:
            raise SystemExit(done.stderr)
        times.append(float(done.stdout.splitlines()[-1]))
    return statistics.median(times)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="imports of each kind")
    rounds = parser.parse_args().rounds
    light, whole = closure(BASE), closure(["hf-any3d"])
    for name, packages in (("a model alone", light), ("the whole package", whole)):
        sizes = sorted(((installed_bytes(package), package) for package in packages), reverse=True)
        print(f"{name}: {len(packages)} packages, {sum(size for size, _ in sizes) / 1e6:,.0f} MB")
        print("  " + ", ".join(f"{package} {size / 1e6:,.1f}" for size, package in sizes))
    found = modules_of(light)
    program = f"import {MODEL}, sys, json"
    done = run_with(found, f"{program}; print(json.dumps(sorted(m.partition('.')[0] for m in sys.modules)))")
    used = set(json.loads(done.stdout.splitlines()[-1])) & found
    print(f"imported by {MODEL}: {', '.join(sorted(used))}")
    everything = modules_of(whole)
    for name, modules, text in (
        ("torch and transformers.PreTrainedModel", found, "import torch; from transformers import PreTrainedModel"),
        (f"{MODEL}, nothing else installed", found, f"import {MODEL}"),
        ("hf_any3d", everything, "import hf_any3d"),
    ):
        print(f"import of {name}: {import_seconds(modules, text, rounds):.2f} s of processor time")


if __name__ == "__main__":
    main()

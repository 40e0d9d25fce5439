"""What `make test`, `test-pages`, `test-tools` and `nightly` run, and what CI leaves to the night.

    python -m tests.stages test|fast|lint|pages|tools [options of pytest]
    python -m tests.stages nightly [--changed] [names of STAGES]

`STAGES` is the table: the tests of each stage, and the paths whose change may break them. `nightly` runs all stages
and all combinations (`SWEEPS`), and writes for each that passes what was in its paths into `.ci/passed.json`, which is
committed. CI runs `nightly --changed`: those stages whose paths have other contents than when they last passed. A
stage that has no entry there, or of whose paths one has uncommitted changes, counts as changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PASSED = ROOT / ".ci" / "passed.json"
"""For each stage the digest of its paths when it last passed, and the commit at that time."""


class Stage(NamedTuple):
    """Tests that `make test` leaves out.

    Attributes:
        target: "tools", "pages" or "lint", the target of the Makefile that runs them; "versions" has a program of its
            own.
        tests: Files and folders below `tests/`.
        depends: Files and folders whose change may break them, beside the tests themselves and `SHARED`.
    """

    target: str
    tests: tuple[str, ...]
    depends: tuple[str, ...]


SHARED = ("setup.cfg", "pyproject.toml", "tests/conftest.py", "tests/stages.py", "tests/hub")
"""What every stage depends on."""

STAGES = {
    "versions": Stage(
        "versions",
        ("versions.py",),
        ("survey/setup.cfg", "hf_any3d/integration", "hf_any3d/registry.py", "hf_any3d/hub", "hf_any3d/tuners")
        + ("hf_any3d/pipelines", "modeling/pretrained_parts", "modeling/encoders"),
    ),
    "fuzz": Stage("tools", ("fuzz",), ("hf_any3d/data", "conversions", "survey")),
    "writing": Stage(
        "tools",
        ("faults", "many_files", "cli/test_written_files.py"),
        ("hf_any3d/utils", "hf_any3d/many_files", "hf_any3d/training", "hf_any3d/cli", "hf_any3d/data", "survey"),
    ),
    "repositories": Stage(
        "tools",
        ("hub/test_contents.py", "integration/test_plain_programs.py", "published/test_check_published.py")
        + ("published/test_published.py",),
        ("hf_any3d/hub", "hf_any3d/integration", "hf_any3d/model_card", "hf_any3d/tuners", "hf_any3d/published.py")
        + ("modeling/pretrained_parts",),
    ),
    "released": Stage(
        "tools",
        tuple(
            f"conversions/test_{name}.py"
            for name in ("released_checkpoints", "act_released", "act_adapters", "minigpt3d_released")
            + ("minigpt3d_published", "aligned_encoders", "detr3d", "dgcnn_room", "point_bert", "point_mae")
            + ("point_starts", "pointgpt", "recon", "recon_parts", "torch_pointcloud")
        )
        + ("modeling/any2point/test_gradient_parity.py", "tuners/test_idpt_parts_training.py"),
        ("conversions", "modeling", "hf_any3d/tuners", "tests/reference", "tests/conversions"),
    ),
    "processes": Stage(
        "tools",
        ("training/test_two_processes.py", "training/test_constant_memory.py")
        + ("serving/test_server.py", "serving/test_slow_clients.py"),
        ("hf_any3d/training", "hf_any3d/data", "hf_any3d/serving", "modeling", "tests/training/program_runs.py"),
    ),
    "compiled": Stage(
        "tools",
        ("training/test_compiled_layers.py", "modeling/any2point/test_compiled.py")
        + ("common/test_compiled_models.py", "common/test_export.py")
        + tuple(f"export/test_{name}.py" for name in ("detectors", "onnx_files", "onnx_models", "programs")),
        ("hf_any3d/export", "hf_any3d/training/faster_steps.py", "modeling"),
    ),
    "survey": Stage(
        "tools",
        ("survey",),
        ("survey", "hf_any3d/data", "hf_any3d/utils", "hf_any3d/tasks", "hf_any3d/cli", "hf_any3d/extensions.py"),
    ),
    "rules": Stage(
        "lint",
        ("test_house_rules.py", "test_architecture.py", "test_records.py", "docs/test_pages.py"),
        ("hf_any3d", "modeling", "conversions", "survey", "examples", "studies", "docs"),
    ),
    "programs": Stage(
        "tools",
        ("studies", "examples/test_train_default_model.py", "examples/test_unknown_things.py")
        + ("examples/test_make_cut.py", "examples/test_published_tables.py"),
        ("studies", "examples", "hf_any3d/default_model", "hf_any3d/evaluation", "hf_any3d/training"),
    ),
    "package": Stage(
        "tools",
        ("test_packaging.py", "test_extending.py", "test_gpu_check.py", "modeling/test_light_import.py")
        + ("docs/test_upstream.py", "docs/test_search.py"),
        ("setup.py", "Makefile", "survey/setup.cfg", "hf_any3d_command.py", "docs", "mkdocs.yml", "README.md")
        + ("hf_any3d/extensions.py", "modeling/kernels", "tests/gpu_check", "tests/skeleton.py"),
    ),
    "blocks": Stage(
        "pages",
        ("doors/test_command_line_page.py", "docs/test_programs.py", "doors/test_pages.py")
        + ("published/test_scene_docs.py", "docs/test_pictures.py", "docs/test_figures.py", "common/test_examples.py"),
        ("README.md", "docs", "examples", "hf_any3d/cli", "hf_any3d/pipelines", "hf_any3d/data", "hf_any3d/training")
        + ("survey", "tests/doors"),
    ),
    "learning": Stage(
        "pages",
        ("doors/test_few_scans.py", "doors/test_train.py", "doors/test_promises.py")
        + ("cli/test_train.py", "cli/test_train_few_scans.py"),
        ("hf_any3d/training", "hf_any3d/cli", "hf_any3d/hub", "hf_any3d/data", "modeling", "tests/doors"),
    ),
    "doors": Stage(
        "pages",
        tuple(f"doors/test_{name}.py" for name in ("commands", "labels", "python"))
        + ("cli/test_light_commands.py", "model_card/test_without_the_package.py"),
        ("hf_any3d/cli", "hf_any3d/pipelines", "hf_any3d/integration", "hf_any3d/registry.py", "hf_any3d/demo")
        + ("hf_any3d/serving", "hf_any3d/data/files", "hf_any3d/tuners", "tests/doors"),
    ),
    "browser": Stage(
        "pages",
        ("doors/test_demo.py", "demo", "pipelines/test_room_page.py", "visualization/test_pages_in_browser.py"),
        ("hf_any3d/demo", "hf_any3d/serving", "hf_any3d/visualization", "survey/hf_any3d_survey/visualization"),
    ),
    "guides": Stage(
        "pages",
        tuple(f"examples/{path.name}" for path in sorted((ROOT / "tests" / "examples").glob("test_run_*.py")))
        + tuple(f"examples/{path.name}" for path in sorted((ROOT / "tests" / "examples").glob("test_*recipes.py")))
        + ("examples/test_act_adapters.py", "examples/test_repeat.py", "examples/test_reproducing.py")
        + ("examples/test_quickstart.py",),
        ("examples", "hf_any3d/training", "hf_any3d/evaluation", "hf_any3d/data"),
    ),
}

TARGETS = ("lint", "pages", "tools")
"""Targets of the Makefile whose tests `make test` leaves out."""

SWEEPS = "sweeps"
"""All tests with all combinations (`tests/turns.py`): hours, so only at night."""
NIGHT = (*(name for name, stage in STAGES.items() if stage.target != "lint"), SWEEPS)


def paths(target: str) -> list[str]:
    """Return the tests of a target of the Makefile, from the root of the checkout."""
    return [f"tests/{test}" for stage in STAGES.values() if stage.target == target for test in stage.tests]


def files_of(name: str) -> list[str]:
    """Return the files with the tests of a target or a stage, of `test` those that no other target has."""
    if name in STAGES:
        chosen = [f"tests/{test}" for test in STAGES[name].tests]
    elif name in TARGETS:
        chosen = paths(name)
    else:
        chosen = ["tests"]
    left_out = set() if chosen != ["tests"] else {ROOT / path for target in TARGETS for path in paths(target)}
    files = []
    for path in chosen:
        found = [ROOT / path] if path.endswith(".py") else sorted((ROOT / path).rglob("test_*.py"))
        files += [file for file in found if left_out.isdisjoint((file, *file.parents))]
    return [str(file.relative_to(ROOT)) for file in files]


def run(name: str, options: list[str], **environment: str) -> int:
    """Run a target, a stage or the sweeps, in as many processes as there are cores; return the exit status.

    Each process gets every second file, or third …, and imports and collects these alone. With pytest-xdist each would
    collect all tests, which took a seventh of the time.
    """
    if name == "versions":
        return subprocess.run([sys.executable, "-m", "tests.versions", *options], cwd=ROOT).returncode
    if name == "fast":
        options = ["-m", "not slow", *options]
    if name == SWEEPS:
        environment["HF_ANY3D_ALL_PAIRS"] = "1"
    files = files_of(name)
    count = min(int(os.environ.get("PYTEST_WORKERS") or os.cpu_count() or 1), len(files))
    with tempfile.TemporaryDirectory(prefix="hf-any3d-drawn-") as drawn:
        # What the processes share, see tests/conftest.py; services end with the process that is named there.
        Path(drawn, "owner").write_text(str(os.getpid()))
        variables = {**os.environ, **environment, "HF_ANY3D_DRAWN": drawn}
        running = []
        for number in range(count):
            command = [sys.executable, "-m", "pytest", "-n0", *files[number::count], *options]
            process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)
            running.append(process)
        with ThreadPoolExecutor(count) as pool:
            told = list(pool.map(passed_on, running))
    counts = Counter[str]()
    for lines in told:
        for amount, kind in re.findall(r"(\d+) (passed|failed|errors?|skipped)\b", lines[-1] if lines else ""):
            counts["failed" if kind.startswith("error") else kind] += int(amount)
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped", flush=True)
    # 5: of these files, no test fits the options.
    codes = {process.returncode for process in running}
    if codes == {5}:
        return 5
    return max((abs(code) for code in codes - {5}), default=0)


def passed_on(process: subprocess.Popen[str]) -> list[str]:
    """Print what a process prints, line by line, and return it when the process has ended."""
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        print(line, end="", flush=True)
    process.wait()
    return lines


def digest(name: str) -> str | None:
    """Return one number for the contents of all that a stage depends on; None with uncommitted changes."""
    stage = STAGES[name]
    watched = [*SHARED, *stage.depends, *(f"tests/{test}" for test in stage.tests)]
    if git("status", "--porcelain", "--", *watched):
        return None
    return hashlib.sha256(git("ls-files", "--stage", "--", *watched).encode()).hexdigest()


def git(*words: str) -> str:
    """Return what git prints about this checkout."""
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def passed() -> dict[str, dict[str, str]]:
    """Return what `PASSED` says."""
    if not PASSED.is_file():
        return {}
    return json.loads(PASSED.read_text(encoding="utf-8"))


def record(name: str, found: str | None, commit: str) -> None:
    """Write down that a stage has passed with the digest and the commit that it had when it began."""
    if found is None:
        print(f"{name} is not recorded: commit the changes of its paths first")
        return
    entries = {**passed(), name: {"digest": found, "commit": commit}}
    kept = {stage: entries[stage] for stage in STAGES if stage in entries}
    PASSED.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def nightly(names: list[str], only_changed: bool) -> int:
    """Run stages, tell how long each took, and record those that pass; return 1 if one fails."""
    before, failed, lines = passed(), False, []
    for name in names or NIGHT:
        if only_changed and name == SWEEPS:
            lines.append(f"{name:14s} left to the night")
            continue
        found, commit = None if name == SWEEPS else digest(name), git("rev-parse", "HEAD").strip()
        if only_changed and found is not None and found == before.get(name, {}).get("digest"):
            lines.append(f"{name:14s} unchanged")
            continue
        print(f"== {name}", flush=True)
        start = time.monotonic()
        code = run(name, [])
        lines.append(f"{name:14s} {time.monotonic() - start:6.0f} s{'' if code == 0 else '  FAILED'}")
        failed |= code != 0
        if code == 0 and name != SWEEPS:
            record(name, found, commit)
    print("\n".join(["stages of the night:", *lines]))
    return int(failed)


def main(words: list[str]) -> int:
    """Run a target, or the stages of the night; return the exit status."""
    if words[:1] == ["nightly"]:
        parser = argparse.ArgumentParser(prog="python -m tests.stages nightly")
        parser.add_argument("--changed", action="store_true", help="only those whose paths have changed")
        parser.add_argument("names", nargs="*", choices=[*NIGHT, []], metavar="STAGE", help=", ".join(NIGHT))
        options = parser.parse_args(words[1:])
        return nightly(options.names, options.changed)
    return run(words[0], words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

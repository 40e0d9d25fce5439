"""Check kernels and models on a GPU, and write what was found under its name.

    python -m tests.gpu_check --output build/gpu_check

Every section runs in a process of its own, so that a crash ends no other, and is stored when it ends. A second run
repeats the sections that have not passed; `--fresh` repeats all. Exits with 1 if any check has failed.

    python -m tests.gpu_check --device cpu --small --output DIR

tries the program itself, without a GPU: tiny sizes, no watch for waits, no limit of time.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from hf_any3d.utils.atomic_files import read_json, write_json, write_text

# Seconds of each section; with the starts of their processes under nine minutes together.
BUDGETS = {
    "parity": 20,
    "reference": 10,
    "waits": 25,
    "precision": 40,
    "devices": 15,
    "speed": 40,
    "steps": 120,
    "modes": 230,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the sections, write and print the tables, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("build/gpu_check"), help="folder for the results")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the program")
    parser.add_argument("--sections", nargs="+", choices=list(BUDGETS), default=list(BUDGETS))
    parser.add_argument("--fresh", action="store_true", help="repeat sections that have passed")
    parser.add_argument("--here", action="store_true", help="run all sections in this process")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: no CUDA device is available; --device cpu --small tries the program itself", file=sys.stderr)
        return 1
    machine = describe(device)
    name = re.sub(r"\W+", "_", machine["device"]).strip("_").lower() + ("_small" if options.small else "")
    file = options.output / f"{name}.json"
    stored = read_json(file) or {}
    # Results of other versions are other results.
    sections = stored.get("sections", {}) if stored.get("machine") == machine else {}
    begun = time.monotonic()
    for section in options.sections:
        if passed(sections.get(section)) and not options.fresh:
            print(f"{section}: has passed before")
            continue
        print(f"{section}:", flush=True)
        apart = device.type == "cuda" and not options.here
        sections[section] = run_apart(section, options) if apart else run_here(section, device, options.small)
        write_json(file, {"machine": machine, "sections": sections})
        write_text(file.with_suffix(".md"), as_markdown(machine, sections))
    failed = [
        f"{section}: {row['name']}"
        for section in options.sections
        for row in sections[section]["rows"]
        if not row["ok"]
    ]
    print(f"{time.monotonic() - begun:.0f} s; {file} and {file.with_suffix('.md')}")
    print(f"{len(failed)} failed: {'; '.join(failed)}" if failed else "all checks passed")
    return int(bool(failed))


def describe(device: torch.device) -> dict[str, Any]:
    """Return what the results depend on."""
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_gpu else f"cpu {platform.machine()}",
        "devices": torch.cuda.device_count() if is_gpu else 1,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def passed(section: dict[str, Any] | None) -> bool:
    """Return whether all checks of a stored section have passed."""
    return bool(section and section["rows"]) and all(row["ok"] for row in section["rows"])


def run_here(section: str, device: torch.device, small: bool) -> dict[str, Any]:
    """Run a section in this process."""
    # Imported here, so that a missing GPU is reported at once.
    from tests.gpu_check import kernels, models, modes
    from tests.gpu_check.run import Run

    functions = (kernels.parity, kernels.speed, models.reference, models.waits, models.precision)
    by_name = {function.__name__: function for function in (*functions, models.steps, models.devices, modes.modes)}
    # Budgets are for the device whose time is dear; a busy machine that tries the program may take longer.
    run = Run(device, small, None if small else BUDGETS[section])
    threads = torch.get_num_threads()
    # Threads of the CPU would spend seconds on waiting for each other in tiny models; `parity` has large clouds.
    torch.set_num_threads(threads if section == "parity" else 1)
    try:
        by_name[section](run)
    except Exception as error:  # while the checks are prepared
        run.rows.append({"name": "section", "ok": False, "note": f"{type(error).__name__}: {error}"})
    finally:
        torch.set_num_threads(threads)
    return {"seconds": round(time.monotonic() - run.started, 1), "rows": run.rows}


def run_apart(section: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a section in another process, which may crash or hang."""
    folder = options.output / "parts" / section
    command = [sys.executable, "-m", "tests.gpu_check", "--here", "--fresh", "--sections", section]
    command += ["--device", options.device, "--output", str(folder), *["--small"] * options.small]
    begun, reason = time.monotonic(), ""
    for old in folder.glob("*.json"):
        old.unlink()
    try:
        status = subprocess.run(command, timeout=2 * BUDGETS[section]).returncode
        reason = f"its process ended with status {status}"
    except subprocess.TimeoutExpired:
        reason = f"ended after {2 * BUDGETS[section]} s"
    for file in folder.glob("*.json"):
        found = read_json(file)
        if found and section in found["sections"]:
            return found["sections"][section]
    row = {"name": "section", "ok": False, "note": reason}
    return {"seconds": round(time.monotonic() - begun, 1), "rows": [row]}


def as_markdown(machine: dict[str, Any], sections: dict[str, Any]) -> str:
    """Return a table of each section."""
    lines = [
        f"# Check on {machine['device']}",
        "",
        "`make gpu-check`; " + ", ".join(f"{k} {v}" for k, v in machine.items()),
    ]
    for name, section in sections.items():
        rows = section["rows"]
        keys = [
            key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("name", "ok", "traceback")
        ]
        lines += ["", f"## {name}, {section['seconds']} s", "", "| check | passed | " + " | ".join(keys) + " |"]
        lines += ["|---" * (len(keys) + 2) + "|"]
        for row in rows:
            cells = [row["name"], "yes" if row["ok"] else "**no**", *(_cell(row.get(key)) for key in keys)]
            lines.append("| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    # Tiny models of the tests are kept there, and nothing is fetched; read when huggingface_hub is imported.
    cache = Path("build/gpu_check/cache").absolute()
    (cache / "drawn").mkdir(parents=True, exist_ok=True)
    os.environ.update(HF_HOME=str(cache), HF_HUB_OFFLINE="1")
    # Nothing but the checks is printed.
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    sys.exit(main())

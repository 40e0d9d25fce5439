"""Try the oldest and the newest releases that setup.cfg allows: `make test-versions`.

`python -m tests.versions main` tries the main branches of transformers and PEFT, as a workflow does each night.

Makes an empty environment for each end in `build/versions`, where pip installs the package's requirements and most
extras at that end, and runs tests there of what people do: read, classify, train, adapt, chat, save, push and open.
Only torch is the release of this environment, since the ends of its range are CUDA builds of several GB on most
machines; pip still has to find a set of releases with the oldest one.
"""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("demo", "files", "meshes", "metrics", "serve", "tiles", "visuals")
"""Extras that are installed at both ends, and what `survey/` requires.

The others have compilers, clusters or models of several hundred MB.
"""
BRANCHES = {
    name: f"{name} @ git+https://github.com/huggingface/{name}" for name in ("accelerate", "peft", "transformers")
}
"""What is installed from its main branch at the end of that name."""
TOOLS = ("httpx", "pytest", "pytest-timeout", "pytest-xdist")
SHOWN = ("datasets", "huggingface-hub", "numpy", "peft", "transformers", "trimesh", "typer")
TESTS = (
    "chat/test_session.py",
    "cli/test_cli.py",
    "common/test_every_encoder.py",
    "data/files/test_hdf5.py",
    "data/files/test_las.py",
    "data/files/test_meshes_beside_trimesh.py",
    "data/parquet/test_publishing.py",
    "hub/test_sharing.py",
    "model_card/test_saving.py",
    "pipelines/test_point_cloud_classification.py",
    "survey/inventory/test_places.py",
    "survey/inventory/test_rasters.py",
    "survey/inventory/test_tables.py",
    "test_entry_points.py",
    "training/test_trainer_entry_points.py",
    "tuners/test_guided_adapter.py",
)


def requirements(end: str) -> list[str]:
    """Return what setup.cfg requires, with `EXTRAS`, and that of `survey/`, at one end.

    Args:
        end: "newest"; "oldest", for the first release of each; or "main", for the newest and `BRANCHES`.
    """
    options = configparser.ConfigParser(interpolation=None)
    options.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [options["options"]["install_requires"]]
    texts += [options["options.extras_require"][extra] for extra in EXTRAS]
    beside = configparser.ConfigParser(interpolation=None)
    beside.read(ROOT / "survey" / "setup.cfg", encoding="utf-8")
    texts.append(beside["options"]["install_requires"])
    lines = dict.fromkeys(line for text in texts for line in text.split() if not line.startswith("hf-any3d"))
    if end == "newest":
        return list(lines)
    if end == "main":
        return [BRANCHES.get(re.split("[<>=]", line)[0], line) for line in lines]
    return [re.sub(r">=([\d.]+).*", r"==\1", line) for line in lines]


def with_torch(lines: list[str], requirement: str) -> list[str]:
    """Return requirements with another one of torch."""
    return [requirement if line.startswith("torch") else line for line in lines]


def environment(end: str) -> Path:
    """Return the interpreter of one end; an environment of the same requirements is used again."""
    wanted = with_torch(requirements(end), f"torch=={version('torch').partition('+')[0]}")
    folder = ROOT / "build" / "versions" / end
    python, made_of = folder / "bin" / "python", folder / "made_of.txt"
    if made_of.is_file() and made_of.read_text().split("\n") == wanted:
        return python
    venv.EnvBuilder(clear=True, symlinks=True, with_pip=True).create(folder)
    pip = [python, "-m", "pip", "install", "--quiet"]
    if end == "oldest":
        subprocess.run([*pip, "--dry-run", *requirements(end)], check=True)
    subprocess.run([*pip, *wanted, *TOOLS], check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    # Without what it requires, as this package comes from the checkout, too.
    subprocess.run([*pip, "--no-deps", "--editable", ROOT / "survey"], check=True)
    made_of.write_text("\n".join(wanted))
    return python


def main() -> int:
    """Run the tests with both ends, or with those that are named; return 1 if any fails."""
    failed = False
    words = sys.argv[1:]
    ends = [word for word in words if word in ("oldest", "newest", "main")]
    tests, variables = [str(ROOT / "tests" / test) for test in TESTS], {**os.environ, "PYTHONPATH": str(ROOT)}
    for end in ends or ("oldest", "newest"):
        python = environment(end)
        program = f"from importlib.metadata import version as of; print({end!r}, *(n + ' ' + of(n) for n in {SHOWN}))"
        subprocess.run([python, "-c", program], check=True)
        options = [word for word in words if word not in ends]
        pytest = [python, "-m", "pytest", "-n", "2", "--dist", "loadfile"]
        done = subprocess.run([*pytest, *tests, *options], env=variables)
        failed |= done.returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Check that the package is ready for the package index: `make release-check`.

Builds sdist and wheel, checks their descriptions with twine, installs the wheel in a new environment outside of the
checkout, and runs there what a new user runs first, without network: `hf-any3d predict` on the example chair,
`pipeline("point-cloud-classification")` without a model name, and the README's blocks that need nothing else.

By default the dependencies come from the environment that runs the check, so that only our own files are new;
`--fresh` installs them from the package index, as a user would.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("conversions", "modeling", "examples/data")
"""Folders of the checkout that are linked into the package."""
SHIPPED = (
    "hf_any3d/py.typed",
    "hf_any3d/assets/README.md",
    "hf_any3d/assets/chair.ply",
    "hf_any3d/assets/stool.ply",
    "hf_any3d/assets/test.parquet",
    "hf_any3d/assets/train.parquet",
    "hf_any3d/default_model/README.md",
    "hf_any3d/default_model/config.json",
    "hf_any3d/default_model/model.safetensors",
    "hf_any3d/default_model/preprocessor_config.json",
    "hf_any3d/default_model/recipe.json",
    "hf_any3d/modeling/any2point/tokenizer_generated_shapes.safetensors",
)
"""Files of the wheel that are not modules."""
LARGEST = 20_000_000
"""Bytes of the wheel; the package index refuses more than 100 MB."""
# What a block of the README must not mention to run without network and without the files of other blocks.
_NEEDS_MORE = re.compile(r"sentence-transformers/|OpenShape/|outputs/|examples/|\bme/|push_to_hub")
FIRST_ANSWER = """
import hf_any3d
from transformers import pipeline

classify = pipeline("point-cloud-classification")
print(classify(str(hf_any3d.example_file("chair.ply")), top_k=2))
print(hf_any3d.load_point_dataset("shapes"))
"""


def copy_checkout(target: Path) -> Path:
    """Copy what a clone has of the package, without the leftovers of builds."""
    for folder in ("hf_any3d", *LINKED):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, target / folder, symlinks=True, ignore=ignored)
    for file in ("hf_any3d_command.py", "setup.py", "setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / file, target)
    return target


def build(checkout: Path) -> dict[str, Path]:
    """Build in a checkout; returns wheel and sdist by kind."""
    for kind in ("wheel", "sdist"):
        run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_{kind}('dist')", cwd=checkout)
    (wheel,), (sdist,) = (list((checkout / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    shutil.rmtree(checkout / "build")
    return {"wheel": wheel, "sdist": sdist}


def missing_files(wheel: Path) -> list[str]:
    """Return the files of `SHIPPED` that a wheel lacks."""
    names = set(zipfile.ZipFile(wheel).namelist())
    return [name for name in SHIPPED if name not in names]


def new_environment(folder: Path, fresh: bool = False) -> Path:
    """Make a virtual environment and return its Python.

    Args:
        folder: New folder for it.
        fresh: Leave it empty, with pip; otherwise it shares the dependencies of the running environment.
    """
    venv.create(folder, with_pip=fresh, symlinks=True)
    if not fresh:
        (site,) = folder.glob("lib/python*/site-packages")
        # An installation of this package there is not followed: lines of a .pth file in a folder that a .pth file adds
        # are not read.
        paths = [path for path in sys.path if path.endswith("site-packages")]
        (site / "dependencies.pth").write_text("\n".join(paths))
    return folder / "bin" / "python"


def install(python: Path, *what: str, fresh: bool = False) -> None:
    """Install something with pip, without its dependencies unless the environment is fresh."""
    options = [] if fresh else ["--no-deps", "--no-build-isolation", "--force-reinstall"]
    run(str(python), "-m", "pip", "install", "--quiet", *options, *what, cwd=python.parent)


def run(*command: str, cwd: Path, offline: bool = False) -> str:
    """Run a command and return what it printed.

    Raises:
        RuntimeError: It failed; the message has the end of its output.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if offline:
        environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "home"), "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def readme_blocks(readme: str) -> Iterator[tuple[str, bool]]:
    """Yield the Python blocks of the README, and whether each runs without network and other blocks' files."""
    for block in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL):
        yield block, not _NEEDS_MORE.search(block)


def first_steps(python: Path, folder: Path) -> Iterator[tuple[str, str, float]]:
    """Run what a new user runs first; yields what it was, its last line of output and its seconds."""
    command = str(python.with_name("hf-any3d"))
    chair = folder / "chair.ply"
    package = "from importlib.util import find_spec; print(find_spec('hf_any3d').origin)"  # without importing it
    origin = run(str(python), "-c", package, cwd=folder).strip()
    shutil.copy(Path(origin).with_name("assets") / "chair.ply", chair)
    steps = [
        ("hf-any3d predict chair.ply", (command, "predict", "chair.ply")),
        ("pipeline without a model name", (str(python), "-c", FIRST_ANSWER)),
    ]
    for number, (block, alone) in enumerate(readme_blocks((ROOT / "README.md").read_text(encoding="utf-8")), 1):
        if alone:
            steps.append((f"README, Python block {number}", (str(python), "-c", block)))
    for title, step in steps:
        start = time.perf_counter()
        printed = run(*step, cwd=folder, offline=True)
        yield title, printed.strip().partition("\n")[0], time.perf_counter() - start


def main() -> int:
    """Build, check, install and try; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.release", description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="install the dependencies from the package index")
    parser.add_argument("--torch", default="torch", help="with --fresh: what pip installs first, such as a CPU build")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder of sdist and wheel")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            check(Path(scratch), options)
        except RuntimeError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    return 0


def check(scratch: Path, options: argparse.Namespace) -> None:
    """Run all steps and print a line for each.

    Raises:
        RuntimeError: A step failed.
    """
    files = build(copy_checkout(scratch / "checkout"))
    for kind, file in files.items():
        print(f"{kind}: {file.name}, {file.stat().st_size / 1e6:.1f} MB", flush=True)
    if missing := missing_files(files["wheel"]):
        raise RuntimeError(f"the wheel has no {', '.join(missing)}")
    if files["wheel"].stat().st_size > LARGEST:
        raise RuntimeError(f"the wheel has more than {LARGEST / 1e6:.0f} MB")
    checked = run(sys.executable, "-m", "twine", "check", "--strict", *map(str, files.values()), cwd=scratch)
    print(f"twine check: {checked.count('PASSED')} of {len(files)} passed", flush=True)
    start = time.perf_counter()
    python = new_environment(scratch / "venv", options.fresh)
    if options.fresh:
        install(python, *options.torch.split(), fresh=True)
    install(python, str(files["wheel"]), fresh=options.fresh)
    print(f"installed in a new environment: {time.perf_counter() - start:.0f} s", flush=True)
    folder = scratch / "elsewhere"
    folder.mkdir()
    for title, line, seconds in first_steps(python, folder):
        print(f"{title}: {line[:90]} ({seconds:.1f} s)", flush=True)
    options.output.mkdir(exist_ok=True)
    for file in files.values():
        shutil.copy(file, options.output)
    print(f"ready for an upload: {', '.join(str(options.output / file.name) for file in files.values())}")


if __name__ == "__main__":
    sys.exit(main())

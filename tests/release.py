"""Check that the package, and the one in `survey/`, are ready for the package index: `make release-check`.

Builds sdists and wheels, checks their descriptions with twine, installs the wheel in a new environment outside of the
checkout, and runs there what a new user runs first: without network `hf-any3d predict` on the example chair and
`pipeline("point-cloud-classification")` without a model name, then all blocks of the README in an empty folder, with a
stand-in for the hub that has small models under the names of the real ones.

By default the dependencies come from the environment that runs the check, so that only our own files are new;
`--fresh` installs them from the package index, as a user would.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from studies.speed.light_import import closure
from tests.conversions.aligned_originals import openshape_flat, patchalign3d
from tests.conversions.minigpt3d_originals import Originals
from tests.hub import LocalHub
from tests.tiny_encoders import saved_encoder
from tests.tiny_text_towers import saved_text_tower, tiny_clip_files

ROOT = Path(__file__).resolve().parents[1]
INSIDE = ("conversions", "modeling", "examples/data", "examples/recipes")
"""Folders of the checkout that a wheel has inside the package."""
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
    "hf_any3d/recipes/base/small_data.yaml",
    "hf_any3d/recipes/quickstart.yaml",
    "hf_any3d/modeling/any2point/tokenizer_generated_shapes.safetensors",
)
"""Files of the wheel that are not modules."""
SHIPPED_BESIDE = (
    "hf_any3d_survey/py.typed",
    "hf_any3d_survey/inventory/likeness.json",
    "hf_any3d_survey/scene_model/README.md",
    "hf_any3d_survey/scene_model/config.json",
    "hf_any3d_survey/scene_model/metrics.json",
    "hf_any3d_survey/scene_model/model.safetensors",
    "hf_any3d_survey/scene_model/preprocessor_config.json",
    "hf_any3d_survey/visualization/templates/labeling.html",
    "hf_any3d_survey/visualization/templates/labeling.js",
    "hf_any3d_survey/visualization/templates/report.html",
)
"""The same of the wheel of `survey/`."""
LARGEST = 20_000_000
"""Bytes of the wheel; the package index refuses more than 100 MB."""
FIRST_ANSWER = """
import hf_any3d
from transformers import pipeline

classify = pipeline("point-cloud-classification")
print(classify(str(hf_any3d.example_file("chair.ply")), top_k=2))
print(hf_any3d.load_point_dataset("shapes"))
"""


def copy_checkout(target: Path) -> Path:
    """Copy what a clone has of the package, without the leftovers of builds."""
    for folder in ("hf_any3d", "survey/hf_any3d_survey", *INSIDE):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, target / folder, symlinks=True, ignore=ignored)
    for file in ("hf_any3d_command.py", "setup.py", "setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / file, target)
    for file in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / "survey" / file, target / "survey")
    return target


def build(checkout: Path) -> dict[str, Path]:
    """Build in a checkout, or in its folder `survey`; returns wheel and sdist by kind."""
    for kind in ("wheel", "sdist"):
        run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_{kind}('dist')", cwd=checkout)
    (wheel,), (sdist,) = (list((checkout / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    shutil.rmtree(checkout / "build")
    return {"wheel": wheel, "sdist": sdist}


def missing_files(wheel: Path, shipped: Sequence[str] = SHIPPED) -> list[str]:
    """Return the files that a wheel lacks, of those that should come with it."""
    names = set(zipfile.ZipFile(wheel).namelist())
    return [name for name in shipped if name not in names]


def new_environment(folder: Path, fresh: bool = False, extras: Sequence[str] | None = None) -> Path:
    """Make a virtual environment and return its Python.

    Args:
        folder: New folder for it.
        fresh: Leave it empty, with pip; otherwise it shares the dependencies of the running environment.
        extras: Share those alone that the package requires with these extras, and pip, as where it is installed with
            nothing else.
    """
    venv.create(folder, with_pip=fresh, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    if extras is not None:
        for package in closure(["hf-any3d", "pip"], extras) - {"hf-any3d", "hf-any3d-survey"}:
            tops = {file.parts[0] for file in importlib.metadata.files(package) or ()} - {"..", "__pycache__"}
            for top in tops:
                if not (site / top).exists():
                    (site / top).symlink_to(str(importlib.metadata.distribution(package).locate_file(top)))
    elif not fresh:
        # An installation of this package there is not followed: lines of a .pth file in a folder that a .pth file adds
        # are not read.
        paths = [path for path in sys.path if path.endswith("site-packages")]
        (site / "dependencies.pth").write_text("\n".join(paths))
    return folder / "bin" / "python"


def install(python: Path, *what: str, fresh: bool = False) -> None:
    """Install something with pip, without its dependencies unless the environment is fresh."""
    options = [] if fresh else ["--no-deps", "--no-build-isolation", "--force-reinstall"]
    run(str(python), "-m", "pip", "install", "--quiet", *options, *what, cwd=python.parent)


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run a command, with changes of its environment, and return what it printed.

    Raises:
        RuntimeError: It failed; the message has the end of its output.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def readme_program(readme: str) -> str:
    """Return all blocks of a README as one Python program; commands run in a shell, except installations."""
    blocks: list[str] = []
    for fence, block in re.findall(r"^```(python|bash)\n(.*?)^```$", readme, flags=re.DOTALL | re.MULTILINE):
        if fence == "bash":
            left_out = ("pip install ", "python3 -m venv ")
            commands = [line for line in block.splitlines() if not line.startswith(left_out)]
            block = f"import subprocess\nsubprocess.run(['bash', '-ec', {chr(10).join(commands)!r}], check=True)\n"
        blocks.append(block)
    return "\n".join(blocks)


@contextmanager
def named_models(folder: Path) -> Iterator[str]:
    """Start a stand-in for the hub with small models under names that README and pages open; yields its address.

    Args:
        folder: New folder for their files.
    """
    folder.mkdir()
    hub = LocalHub()
    try:
        for name, saved in (
            ("sentence-transformers/all-MiniLM-L6-v2", saved_text_tower("bert")),
            ("facebook/dinov2-small", saved_encoder("dinov2")),
        ):
            files = (path for path in Path(saved).rglob("*") if path.is_file())
            hub.commit(name, {path.relative_to(saved).as_posix(): path.read_bytes() for path in files})
        for name, file, tensors in (
            ("OpenShape/openshape-pointbert-vitb32-rgb", "model.pt", openshape_flat("vitb32")),
            ("patchalign3d/patchalign3d-encoder", "patchalign3d.pt", patchalign3d()),
        ):
            published = io.BytesIO()
            torch.save(tensors, published)
            hub.commit(name, {file: published.getvalue()}, in_lfs=True)
        hub.commit("openai/clip-vit-base-patch32", tiny_clip_files(folder / "clip", 512))
        hub.commit("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", tiny_clip_files(folder / "clip-1280", 1280))
        Originals().publish(hub, folder / "minigpt3d")
        yield hub.url
    finally:
        hub.close()


def first_steps(python: Path, folder: Path) -> Iterator[tuple[str, str, float]]:
    """Run what a new user runs first; yields what it was, its first line of output and its seconds."""
    command = str(python.with_name("hf-any3d"))
    package = "from importlib.util import find_spec; print(find_spec('hf_any3d').origin)"  # without importing it
    origin = run(str(python), "-c", package, cwd=folder).strip()
    shutil.copy(Path(origin).with_name("assets") / "chair.ply", folder)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "NO_COLOR": "1"}
    for title, step in (
        ("hf-any3d predict chair.ply", (command, "predict", "chair.ply")),
        ("pipeline without a model name", (str(python), "-c", FIRST_ANSWER)),
    ):
        start = time.perf_counter()
        printed = run(*step, cwd=folder, **offline)
        yield title, printed.strip().partition("\n")[0], time.perf_counter() - start


def run_readme(python: Path, folder: Path) -> str:
    """Run all blocks of the README in an empty folder, in order; returns what they printed.

    Args:
        python: Python of an environment in which the package is installed.
        folder: New folder, for the empty one, the models and the caches.
    """
    empty = folder / "empty"
    empty.mkdir(parents=True)
    program = readme_program((ROOT / "README.md").read_text(encoding="utf-8"))
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    with named_models(folder / "models") as address:
        environment = {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "PATH": path, "NO_COLOR": "1"}
        return run(str(python), "-u", "-c", program, cwd=empty, **environment)


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
    checkout = copy_checkout(scratch / "checkout")
    files, beside = build(checkout), build(checkout / "survey")
    for kind, file in (*files.items(), *beside.items()):
        print(f"{kind}: {file.name}, {file.stat().st_size / 1e6:.1f} MB", flush=True)
    if missing := missing_files(files["wheel"]) + missing_files(beside["wheel"], SHIPPED_BESIDE):
        raise RuntimeError(f"the wheels have no {', '.join(missing)}")
    if files["wheel"].stat().st_size > LARGEST:
        raise RuntimeError(f"the wheel has more than {LARGEST / 1e6:.0f} MB")
    everything = [*files.values(), *beside.values()]
    checked = run(sys.executable, "-m", "twine", "check", "--strict", *map(str, everything), cwd=scratch)
    print(f"twine check: {checked.count('PASSED')} of {len(everything)} passed", flush=True)
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
    # What came first answers without it.
    install(python, str(beside["wheel"]), fresh=options.fresh)
    answer = run(str(python.with_name("hf-any3d")), "inventory", "--help", cwd=folder, NO_COLOR="1").split()
    print(f"hf-any3d inventory, of the second wheel: {' '.join(answer)[:60]} …", flush=True)
    (scratch / "drawn").mkdir()
    os.environ.setdefault("HF_HOME", str(scratch / "drawn"))  # of the numbers of the small models
    start = time.perf_counter()
    run_readme(python, scratch / "readme")
    print(f"all blocks of the README, with small models: {time.perf_counter() - start:.0f} s", flush=True)
    options.output.mkdir(exist_ok=True)
    for file in everything:
        shutil.copy(file, options.output)
    print(f"ready for an upload: {', '.join(str(options.output / file.name) for file in everything)}")


if __name__ == "__main__":
    sys.exit(main())

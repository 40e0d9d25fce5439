"""What is installed: all packages, nothing that reaches the wrong way, and a wheel that works by itself."""

import configparser
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hf_any3d.modeling.pretrained_parts.sources import OFFLINE_PACKAGES

ROOT = Path(__file__).resolve().parents[1]
# Folder at the root of the checkout, and the name under which it is installed.
PACKAGES = {"hf_any3d": "hf_any3d", "modeling": "hf_any3d.modeling", "conversions": "hf_any3d.conversions"}


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def package_of(file: Path) -> str:
    folder, *inner = file.relative_to(ROOT).parent.parts
    return ".".join([PACKAGES[folder], *inner])


def python_files() -> list[Path]:
    return sorted(file for folder in PACKAGES for file in (ROOT / folder).rglob("*.py"))


def test_every_folder_with_python_files_is_listed(setup):
    assert setup["options"]["packages"].split() == sorted({package_of(file) for file in python_files()})


def test_every_package_has_an_init_file():
    folders = {file.parent for file in python_files()}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_offline_extra_is_what_the_program_installs(setup):
    wanted = {package.requirement for package in OFFLINE_PACKAGES.values()}
    assert set(setup["options.extras_require"]["offline"].split()) == wanted


@pytest.mark.parametrize("name", ["modeling", "conversions"])
def test_folders_at_the_root_refuse_their_short_name(name):
    told = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 1
    assert f"ImportError: this package is installed as hf_any3d.{name}" in told.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    # From a copy: a build leaves folders behind, and takes in what earlier builds left.
    copy = tmp_path_factory.mktemp("checkout")
    for folder in PACKAGES:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / file, copy)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(copy / "dist"), str(copy))
    (built,) = (copy / "dist").glob("*.whl")
    return built


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_folder_of_models_is_not_imported_by_its_own_name():
    spec = importlib.util.spec_from_file_location("modeling", ROOT / "modeling" / "__init__.py")
    with pytest.raises(ImportError, match="installed as hf_any3d.modeling"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.slow
def test_wheel_holds_every_python_file_and_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    expected = {f"{package_of(file).replace('.', '/')}/{file.name}" for file in python_files()}
    assert expected == {name for name in names if name.endswith(".py")}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_wheel_imports_outside_the_checkout(wheel, tmp_path):
    target = tmp_path / "installed"
    pip("install", "--no-deps", "--target", str(target), str(wheel))
    modules = [package_of(file) + ("" if file.stem == "__init__" else f".{file.stem}") for file in python_files()]
    # The checkout's own installation answers through a finder; without it only `target` is left.
    program = f"""
import importlib, pathlib, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in f"{{finder}} {{type(finder)}}".lower()]
for name in {modules}:
    file = importlib.import_module(name).__file__
    assert pathlib.Path(file).is_relative_to({str(target)!r}), file
print("all of", {len(modules)})
"""
    environment = {**os.environ, "PYTHONPATH": str(target)}
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert told.stdout.strip() == f"all of {len(modules)}", told.stderr

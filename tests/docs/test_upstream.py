"""The patches that docs/upstream.md proposes apply to the installed releases and pass their own tests."""

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

PATCHES = sorted((Path(__file__).parents[2] / "docs" / "upstream").glob("*.patch"))
PAGE = Path(__file__).parents[2] / "docs" / "upstream.md"
# The releases that they are made against
RELEASES = {"peft": "0.21.2", "transformers": "5.24.0"}


@pytest.mark.slow
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_proposed_patch_applies_and_passes_its_tests(patch, tmp_path):
    library = patch.stem.partition("_")[0]
    if version(library) != RELEASES[library]:
        pytest.skip(f"is made against {library} {RELEASES[library]}")
    (tmp_path / "src").mkdir()
    installed = Path(importlib.util.find_spec(library).origin).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(installed, tmp_path / "src" / library, ignore=ignored)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, check=True)
    variables = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_page_names_each_patch():
    assert PATCHES and [patch.name for patch in PATCHES if patch.name not in PAGE.read_text(encoding="utf-8")] == []

"""The search of the built site finds newcomers' pages and guides by their headings."""

import os
import shutil
import subprocess
import sys

import pytest

from docs.tools.search import missed
from docs.tools.site import ROOT


@pytest.mark.slow
def test_a_page_is_found_by_each_of_its_headings(tmp_path):
    pytest.importorskip("material", reason="the extra docs, which builds the site")
    pytest.importorskip("mkdocstrings", reason="the extra docs, which builds the site")
    if shutil.which("node") is None:
        pytest.skip("no node, which runs the script of the search")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert built.returncode == 0, built.stderr
    assert missed(tmp_path / "site") == {}

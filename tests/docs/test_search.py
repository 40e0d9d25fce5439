"""The search of the built site names first a page that answers what people type."""

import os
import shutil
import subprocess
import sys

import pytest

from docs.tools.search import QUESTIONS, first_pages
from docs.tools.site import ROOT


@pytest.mark.slow
def test_what_people_type_finds_a_page_that_answers_it_first(tmp_path):
    pytest.importorskip("material", reason="the extra docs, which builds the site")
    pytest.importorskip("mkdocstrings", reason="the extra docs, which builds the site")
    if shutil.which("node") is None:
        pytest.skip("no node, which runs the script of the search")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert built.returncode == 0, built.stderr
    found = first_pages(tmp_path / "site")
    assert {question: page for question, page in found.items() if page not in QUESTIONS[question]} == {}

"""The Python blocks of all pages and the notebooks run, in order, with tiny models in place of the named ones."""

import json
import os
import re
import shutil
import subprocess
import sys

from docs.tools.snippets import ROOT, notebooks, programs
from hf_any3d.hub.licenses import ACCEPT
from tests.doors.test_pages import PAGES
from tests.release import named_models

NOT_RUN_HERE = {
    **{page: "tests/doors/test_pages.py runs its blocks" for page in PAGES},
    "docs/data.md": "tests/data/test_data_docs.py runs it and compares what it prints",
    "docs/export.md": "opens exported files; tests/export does so",
    "docs/datasets.md": "describes a dataset that does not exist",
}


def test_all_blocks_and_notebooks_run(tmp_path):
    (tmp_path / "examples").mkdir()
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "examples" / "data")
    for file in (ROOT / "examples").glob("*.py"):
        shutil.copy(file, tmp_path / "examples")
    run = {name: text for name, text in (programs() | notebooks(quick=True)).items() if name not in NOT_RUN_HERE}
    assert len(run) > 15
    (tmp_path / "programs.json").write_text(json.dumps(run))

    command = [sys.executable, "-m", "tests.docs.run_programs", "programs.json"]
    with named_models(tmp_path / "named") as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), ACCEPT: "all"}
        environment["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    failed = "\n".join(re.findall(r"^\S+ FAILED\n(?:.*\n)*?(?=^\S+: [\d.]+ s$|\Z)", done.stdout, flags=re.MULTILINE))
    assert done.returncode == 0, f"{failed}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_notebooks_are_stored_without_outputs():
    for path in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        assert notebook["nbformat"] == 4 and notebook["cells"][0]["cell_type"] == "markdown"
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [] and cell["execution_count"] is None, path.name

"""The notebooks run, in order, with tiny models in place of the named ones; tests/doors/test_pages.py runs pages."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from docs.tools.snippets import ROOT, notebooks
from hf_any3d.hub.licenses import ACCEPT
from tests.chat.tiny_chat_model import tiny_chat_pipeline
from tests.release import named_models


@pytest.mark.slow
def test_all_notebooks_run(tmp_path):
    # The one program that a notebook would download.
    shutil.copy(ROOT / "examples" / "run_zero_shot.py", tmp_path)
    chat = tiny_chat_pipeline(max_position_embeddings=2048)
    chat.model.generation_config.max_new_tokens = 6
    chat.save_pretrained(tmp_path / "outputs/chat_shapes/seed-0/stage_4/model")
    (tmp_path / "programs.json").write_text(json.dumps(notebooks(quick=True)))

    command = [sys.executable, "-m", "tests.docs.run_programs", "programs.json"]
    with named_models(tmp_path / "named") as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), ACCEPT: "all"}
        environment["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    failed = "\n".join(re.findall(r"^\S+ FAILED\n(?:.*\n)*?(?=^\S+: [\d.]+ s$|\Z)", done.stdout, flags=re.MULTILINE))
    assert done.returncode == 0, f"{failed}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_notebooks_open_on_a_hosted_service_and_are_stored_without_outputs():
    for path in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        first, install = ("".join(cell["source"]) for cell in notebook["cells"][:2])
        address = f"/hf-any3d/hf_any3d/blob/main/{path.relative_to(ROOT).as_posix()})"
        assert f"(https://colab.research.google.com/github{address}" in first, path.name
        assert notebook["nbformat"] == 4 and install.startswith("%pip install "), path.name
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [] and cell["execution_count"] is None, path.name

"""All code of the README runs, in order, in a new folder, with small models under the names on the hub."""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from tests.chat.tiny_chat_model import tiny_chat_pipeline
from tests.conversions.aligned_originals import openshape_flat
from tests.hub import LocalHub
from tests.tiny_text_towers import tiny_clip_files

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPENSHAPE = "OpenShape/openshape-pointbert-vitb32-rgb"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(command: list[str], cwd: Path, hub: LocalHub) -> str:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(cwd / "home")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command[:3]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder like a checkout, and a local hub with a small encoder under the real one's name."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").mkdir()
    shutil.copytree(ROOT / "examples" / "data", folder / "examples" / "data")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder / "encoder")
    hub = LocalHub()
    hub.commit(ENCODER, {file.name: file.read_bytes() for file in (folder / "encoder").iterdir()})
    published = io.BytesIO()
    torch.save(openshape_flat("vitb32"), published)
    hub.commit(OPENSHAPE, {"model.pt": published.getvalue()}, in_lfs=True)
    hub.commit("openai/clip-vit-base-patch32", tiny_clip_files(folder / "clip", 512))
    tiny_chat_pipeline().save_pretrained(folder / "outputs" / "chat_shapes" / "seed-0" / "stage_4" / "model")
    yield folder, hub
    hub.close()


MODEL = f"""
from peft import get_peft_model
from hf_any3d import *
names = ["chair", "table", "lamp"]
model = Any2PointForPointCloudClassification.from_encoder_pretrained(
    "{ENCODER}", id2label=dict(enumerate(names)), num_tokens=8, tokenizer_neighbors=4
)
get_peft_model(model, GuidedAdapterConfig()).save_pretrained("outputs/quickstart/model")
PointCloudProcessor(num_points=64).save_pretrained("outputs/quickstart/model")
"""
"""Makes the model that the README opens as the result of `make quickstart`."""


def test_python_blocks_run_in_order(place):
    folder, hub = place
    program = "\n".join(blocks("python"))
    assert program.count("import") > 10
    program = f"import torch; torch.set_num_threads(1)\nexec({MODEL!r}, {{}})\n{program}"
    printed = run([sys.executable, "-c", program], folder, hub)
    assert "'label'" in printed and "trainable params" in printed and "['ball', 'box']" in printed


def test_commands_run(place):
    folder, hub = place
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("hf-any3d ")]
    assert commands
    # In one process: it takes seconds to start.
    program = f"""
import shlex
import sys
from hf_any3d.cli import main
exec({MODEL!r}, {{}})
for command in {commands}:
    sys.argv = shlex.split(command)
    try:
        main()
    except SystemExit as ending:
        assert not ending.code, command
"""
    run([sys.executable, "-c", program], folder, hub)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert {"quickstart", "test"} <= named
    missing = {target for target in named if not re.search(rf"^{target}:", makefile, flags=re.MULTILINE)}
    assert not missing


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing

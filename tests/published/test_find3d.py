"""Find3D opens by its published name, with the text tower of SigLIP where that was published."""

import dataclasses
import json
from pathlib import Path

import huggingface_hub
import numpy as np
import torch
from safetensors.torch import save
from transformers import AutoConfig, pipeline

from hf_any3d.data.files import write_point_cloud
from hf_any3d.data.inputs import to_cloud
from hf_any3d.hub.published_table import PUBLISHED
from hf_any3d.modeling.point_transformer_v3.about import FIND3D_TOWER
from hf_any3d.published import open_published
from tests.cli.conftest import run
from tests.modeling.ptv3_case import Find3DCase
from tests.published.test_published import forget
from tests.published.test_scene_docs import commands
from tests.tiny_text_towers import saved_text_tower

NAME = "ziqima/find3d-checkpt0"


def test_find3d_opens_by_its_name_and_finds_parts(hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    case, entry, tower = Find3DCase("ptv1_find3d"), PUBLISHED[NAME], Path(saved_text_tower("siglip"))
    width = AutoConfig.from_pretrained(tower).text_config.projection_size
    tensors = case.tensors()
    # Of the tiny tower's width.
    tensors |= {name: tensors[name][:width].contiguous() for name in ("fc4.weight", "fc4.bias")}
    (tmp_path / "arguments.json").write_text(json.dumps(case.arguments["extractor"]))
    assert entry.files[None].config["text_embedding_size"] == 768 and entry.text_tower == FIND3D_TOWER
    small = dataclasses.replace(
        entry.files[None],
        config={"text_embedding_size": width, "block_rule": "full"},
        options={"arguments": str(tmp_path / "arguments.json")},
    )
    monkeypatch.setitem(PUBLISHED, NAME, dataclasses.replace(entry, files={None: small}))
    files = {"model.safetensors": save(tensors), "config.json": b'{"dim_output": 768}'}
    hub.commit(NAME, files, in_lfs=True)
    hub.commit(FIND3D_TOWER, {file.name: file.read_bytes() for file in tower.iterdir() if file.is_file()})
    try:
        model = open_published(NAME)
        assert type(model).__name__ == entry.system.model_class and model.name_or_path == NAME
        assert torch.equal(model.text_head.hidden[0].weight, tensors["fc1.weight"])
        assert model.config.published["code_license"] == "MIT"
        segment = pipeline("zero-shot-point-cloud-segmentation", model=NAME)
        answer = segment(case.cloud(), candidate_labels=["seat", "leg"], category="chair")
        assert set(np.unique(answer["labels"])) <= {0, 1, 2} and len(answer["labels"]) == 1300
        write_point_cloud(tmp_path / "chair.ply", to_cloud(case.cloud()))
        (words,) = commands("segmentation.md", NAME)
        code, out, err = run(*words, "--json")
        assert code == 0 and (tmp_path / "chair.html").is_file(), err
        assert {part["label"] for part in json.loads(out)[0]["segments"]} <= {"seat", "leg", "back", "none"}
    finally:
        for name in (NAME, FIND3D_TOWER):
            huggingface_hub.delete_repo(name)
            forget(name)

"""Files of the authors in rarer forms: in several parts, with fewer channels, without what others have."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from hf_any3d.conversions import convert_detr3d, convert_ptv3, convert_spatiallm, convert_uni3d
from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3Config
from tests.conversions.aligned_originals import uni3d
from tests.conversions.spatiallm_originals import Released
from tests.errors import raises
from tests.modeling.detr3d.reference_case import DetectionCase
from tests.modeling.ptv3_case import ptv3_original


def test_weights_in_several_files_are_all_named(tmp_path):
    released = Released()
    released.write_settings(tmp_path / "released")
    names = sorted(released.state)
    places = {name: f"model-{1 + number % 2}.safetensors" for number, name in enumerate(names)}
    for file in set(places.values()):
        part = {name: released.state[name].contiguous() for name in names if places[name] == file}
        save_file(part, tmp_path / "released" / file)
    index = tmp_path / "released" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    facts = convert_spatiallm(tmp_path / "released", tmp_path / "ours", dtype="float16")
    assert facts["bytes"] == sum(file.stat().st_size for file in (tmp_path / "ours").iterdir())
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "- Model, model-1.safetensors: `model-1.safetensors`" in card and "- Model, model-2.safetensors: " in card
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    name = "spatiallm.language_model.model.embed_tokens.weight"
    assert torch.equal(stored[name], released.state["model.embed_tokens.weight"].half())
    assert "spatiallm.language_model.lm_head.weight" not in stored


def test_an_encoder_without_normals_reads_colors_alone(tmp_path):
    content = ptv3_original("options")
    torch.save(content, tmp_path / "encoder.pth")
    facts = convert_ptv3(tmp_path / "encoder.pth", tmp_path / "out")
    assert facts == {
        "output": str(tmp_path / "out"),
        "model": "PointTransformerV3Model",
        "parameters": facts["parameters"],
        "bytes": sum(file.stat().st_size for file in (tmp_path / "out").iterdir()),
        "license": "cc-by-nc-4.0",
    }
    config, processor = PointTransformerV3Config.from_pretrained(tmp_path / "out"), AutoProcessor
    processor = processor.from_pretrained(tmp_path / "out")
    assert config.in_channels == 6 and processor.features == ["xyz", "rgb"]
    assert config.grid_size == processor.grid_size
    card = (tmp_path / "out" / "README.md").read_text()
    assert "It takes 6 channels per point: coordinates, colors from 0 to 1." in card
    torch.save({"state_dict": {"seg_head.weight": torch.ones(2, 3), "other": torch.ones(1)}}, tmp_path / "head.pth")
    with raises(ValueError, naming="head.pth"):
        convert_ptv3(tmp_path / "encoder.pth", tmp_path / "other", head=tmp_path / "head.pth")
    torch.save({"state_dict": {"seg_head.weight": torch.ones(2, 3)}}, tmp_path / "head.pth")
    message = (
        f"{tmp_path / 'encoder.pth'} and {tmp_path / 'head.pth'}: does not fit, tensors are missing: segmenter.out.b"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        convert_ptv3(tmp_path / "encoder.pth", tmp_path / "other", head=tmp_path / "head.pth")
    for name in ("trained_with", "dataset", "arguments"):
        with pytest.raises(ValueError, match=f"encoder.pth: is not of the supervised layout; expected no {name}$"):
            convert_ptv3(tmp_path / "encoder.pth", tmp_path / "other", **{name: "scannet"})


def test_a_scale_of_cosines_is_one_number(tmp_path):
    content = uni3d("uni3d_manifest_tiny")
    content["module"]["logit_scale"] = torch.ones(2)
    torch.save(content, tmp_path / "model.pt")
    with raises(ValueError, naming="model.pt"):
        convert_uni3d(tmp_path / "model.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_clouds_of_an_unknown_data_set_have_as_many_points_as_is_usual_or_given(tmp_path):
    torch.save(DetectionCase("detr3d_scannet_vanilla").original, tmp_path / "detector.pth")
    for number, (given, expected) in enumerate((({"dataset": "none"}, 20_000), ({"num_points": 77}, 77))):
        convert_detr3d(tmp_path / "detector.pth", tmp_path / str(number), **given)
        processor = AutoProcessor.from_pretrained(tmp_path / str(number))
        assert (processor.num_points, processor.features) == (expected, ["xyz"])

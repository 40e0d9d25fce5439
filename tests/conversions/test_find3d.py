"""Files of Find3D become directories that find parts by name."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoProcessor

from hf_any3d import AutoModelForZeroShotPointCloudSegmentation
from hf_any3d.conversions import convert_find3d
from hf_any3d.conversions.point_transformer_v3.names import convert_supervised_state_dict, supervised_fields
from hf_any3d.conversions.point_transformer_v3.supervised import VARIANTS, sizes_of
from hf_any3d.modeling.point_transformer_v3 import (
    PRESETS,
    PointTransformerV3Config,
    PointTransformerV3ForZeroShotPointCloudSegmentation,
)
from tests.cli.conftest import run
from tests.errors import raises
from tests.modeling.ptv3_case import Find3DCase

CASE = Find3DCase("ptv1_find3d")


@pytest.fixture
def released(tmp_path):
    """`model.safetensors` of reduced widths, and the arguments of its extractor."""
    save_file(CASE.tensors(), tmp_path / "model.safetensors")
    (tmp_path / "arguments.json").write_text(json.dumps(CASE.arguments["extractor"]))
    return str(tmp_path / "model.safetensors"), str(tmp_path / "arguments.json")


@pytest.mark.usefixtures("libraries_as_they_were")
def test_a_released_file_converts_and_computes_as_its_program(released, tmp_path):
    file, arguments = released
    code, out, err = run("convert", file, "--arguments", arguments, "--output", tmp_path / "out")
    assert code == 0 and "PointTransformerV3ForZeroShotPointCloudSegmentation" in out, err
    model, processor = (
        auto.from_pretrained(tmp_path / "out") for auto in (AutoModelForZeroShotPointCloudSegmentation, AutoProcessor)
    )
    assert (model.config.block_rule, model.config.depth_rule, model.config.none_label) == ("full", "max", True)
    assert model.config.part("text_tower").name_or_path == "google/siglip-base-patch16-224"
    assert processor.model_axes == ["-x", "z", "y"] and processor.drawn_points == 5000 and processor.up_axis == "y"
    model.config.depth_of_batch = True
    with torch.no_grad():
        logits = model(**CASE.voxels, text_embeds=CASE.expected["text"], with_none=False).logits[0]
    assert CASE.error("logits", logits / model.text_head.logit_scale.exp()) <= CASE.manifest["tolerance"]["logits"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Find3D" in card and "2411.13550" in card and "zero-shot-point-cloud-segmentation" in card


def test_other_sizes_need_the_arguments_of_the_extractor(released, tmp_path):
    file, _ = released
    with raises(ValueError, naming="enc_depths"):
        convert_find3d(file, tmp_path / "out")
    _, arguments = released
    assert "order" not in json.loads(open(arguments).read())
    convert_find3d(file, tmp_path / "out", arguments=arguments)
    config = PointTransformerV3Config.from_pretrained(tmp_path / "out")
    assert list(config.curves) == ["z", "z-trans", "hilbert", "hilbert-trans"]


def test_the_published_file_has_exactly_our_tensors():
    case = Find3DCase("ptv1_manifest_find3d")
    found = sizes_of(case.on_meta, "extractor.")
    assert all(size == VARIANTS["base"].get(name, False) for name, size in found.items())
    stated = case.manifest["config"]
    assert all(list(value) == stated[name] for name, value in VARIANTS["base"].items())
    fields = supervised_fields({"in_channels": 6, **VARIANTS["base"]}, block_rule="full", depth_rule="max")
    own = PRESETS["find3d"]
    assert all(fields[name] == (list(value) if isinstance(value, tuple) else value) for name, value in own.items()
               if name not in ("reads_coordinates", "text_embedding_size", "none_label"))  # fmt: skip
    with torch.device("meta"):
        model = PointTransformerV3ForZeroShotPointCloudSegmentation(PointTransformerV3Config(**own))
    state = convert_supervised_state_dict(case.on_meta, fields)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in state.items()
    }
    assert sum(weight.numel() for weight in model.parameters()) == case.manifest["parameters"] == 46_228_673

"""Checkpoints of every published layout of OpenShape and Uni3D become directories that open and answer."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from hf_any3d import AutoModelForZeroShotPointCloudClassification
from hf_any3d.cli import app
from hf_any3d.conversions import convert_openshape, convert_uni3d
from hf_any3d.conversions.openshape.convert import convert_openshape_encoder
from hf_any3d.conversions.uni3d.convert import convert_uni3d_encoder
from tests.conversions.aligned_originals import openshape_flat, openshape_training, shallow, uni3d
from tests.errors import raises
from tests.reference.fill import points
from tests.turns import some

# Name -> command, options, content of the file, the encoder's tensors under our names, expected config.
LAYOUTS = {
    "openshape-vitg14": (
        "openshape",
        [],
        openshape_training,
        lambda: convert_openshape_encoder(shallow("openshape_manifest_vitg14")),
        {"num_groups": 384, "group_radius": 0.2, "projection_dim": 1280},
    ),
    "openshape-vitl14": (
        "openshape",
        [],
        lambda: openshape_flat("vitl14"),
        lambda: convert_openshape_encoder(shallow("openshape_manifest_vitl14")),
        {"num_groups": 64, "group_radius": 0.4, "projection_dim": 768},
    ),
    "openshape-vitb32": (
        "openshape",
        [],
        lambda: openshape_flat("vitb32"),
        lambda: convert_openshape_encoder(shallow("openshape_manifest_vitb32")),
        {"num_groups": 64, "group_radius": 0.4, "projection_dim": None},
    ),
    "uni3d-tiny": (
        "uni3d",
        [],
        lambda: uni3d("uni3d_manifest_tiny", "module."),
        lambda: convert_uni3d_encoder(shallow("uni3d_manifest_tiny")),
        {"num_attention_heads": 3, "gated_mlp": True, "mlp_norm": False, "intermediate_size": 512},
    ),
    "uni3d-base": (
        "uni3d",
        ["--num-groups", "96", "--group-size", "32"],
        lambda: uni3d("uni3d_base_reduced"),
        lambda: convert_uni3d_encoder(shallow("uni3d_base_reduced")),
        {"num_attention_heads": 4, "gated_mlp": True, "mlp_norm": True, "num_groups": 96},
    ),
    "uni3d-giant": (
        "uni3d",
        ["--num-groups", "96", "--group-size", "32", "--num-attention-heads", "4"],
        lambda: uni3d("uni3d_giant_reduced"),
        lambda: convert_uni3d_encoder(shallow("uni3d_giant_reduced"), 4),
        {"num_attention_heads": 4, "gated_mlp": False, "intermediate_size": 1536},
    ),
}


@pytest.mark.slow
# The others are those of vitb32 with a projection, and of the base size without a norm.
@pytest.mark.parametrize("layout", some(LAYOUTS, left_out=["openshape-vitl14", "uni3d-tiny"]))
def test_every_published_layout_converts_on_the_command_line_and_opens(layout, tmp_path):
    command, options, content, expected, fields = LAYOUTS[layout]
    torch.save(content(), tmp_path / "model.pt")
    arguments = ["convert", tmp_path / "model.pt", "--output", tmp_path / "out", *options]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "ForZeroShotPointCloudClassification" in result.output
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert {name: getattr(model.config, name) for name in fields} == fields
    ours, (state, _) = model.state_dict(), expected()
    state.pop("logit_scale", None)
    assert ours.keys() == state.keys()
    for name, tensor in state.items():
        precise = tensor.half().float() if command == "uni3d" and tensor.is_floating_point() else tensor
        assert torch.equal(ours[name], precise), name
    clouds = torch.from_numpy(points("cloud", 2, 600, 6))
    zero_shot = AutoModelForZeroShotPointCloudClassification.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        features = model.get_point_features(clouds)
        assert torch.equal(zero_shot.get_point_features(clouds), features)
        texts = torch.randn(3, features.shape[1], generator=torch.Generator().manual_seed(0))
        logits = zero_shot(clouds, text_embeds=texts).logits_per_point_cloud
    cosines = features @ torch.nn.functional.normalize(texts, dim=-1).T
    torch.testing.assert_close(logits, cosines * zero_shot.alignment.logit_scale.exp())
    assert len(zero_shot.config.hypothesis_templates) == 64
    assert "not evaluated" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("size", "key"), [("vitg14", "z_up"), ("vitb32", "y_up")])
def test_the_processor_prepares_clouds_as_the_released_program(size, key, tmp_path):
    from tests.modeling.aligned_case import AlignedCase

    case = AlignedCase("openshape_input")
    torch.save(openshape_training() if size == "vitg14" else openshape_flat(size), tmp_path / "model.pt")
    convert_openshape(tmp_path / "model.pt", tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    cloud = case.points[0].numpy()
    colored = processor(cloud, num_points=len(cloud))["points"][0]
    assert case.error(key, colored[:, :3]) <= 1e-6
    bare = processor({"points": cloud[:, :3]}, num_points=len(cloud))["points"][0]
    if size == "vitg14":
        assert case.error("features_with_colour", colored) <= 1e-6
        assert case.error("features_without_colour", bare) <= 1e-6
    np.testing.assert_array_equal(bare[:, 3:], np.full((len(cloud), 3), np.float32(0.4)))


def test_uni3d_keeps_the_axes(tmp_path):
    from tests.modeling.aligned_case import AlignedCase

    case = AlignedCase("uni3d_input")
    torch.save(uni3d("uni3d_manifest_tiny"), tmp_path / "model.pt")
    convert_uni3d(tmp_path / "model.pt", tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    made = processor({"points": case.points[0].numpy()}, num_points=case.points.shape[1])["points"][0]
    assert case.error("xyz", made[:, :3]) <= 1e-6


def test_the_scale_is_that_of_the_file_or_the_initial_one(tmp_path):
    torch.save(openshape_training(), tmp_path / "model.pt")
    facts = convert_openshape(tmp_path / "model.pt", tmp_path / "out")
    opened = AutoModelForZeroShotPointCloudClassification.from_pretrained(tmp_path / "out")
    assert opened.alignment.logit_scale.item() == 3.5 and facts["left_out"] == []
    torch.save(openshape_flat("vitb32"), tmp_path / "flat.pt")
    facts = convert_openshape(tmp_path / "flat.pt", tmp_path / "flat")
    opened = AutoModelForZeroShotPointCloudClassification.from_pretrained(tmp_path / "flat")
    assert opened.alignment.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-5)
    assert facts["left_out"] == ["other.bias", "temp"]
    assert "no scale of cosines under a known name" in (tmp_path / "flat" / "README.md").read_text()


@pytest.mark.slow
def test_texts_of_uni3d_need_its_own_tower(tmp_path):
    torch.save(uni3d("uni3d_manifest_tiny"), tmp_path / "model.pt")
    convert_uni3d(tmp_path / "model.pt", tmp_path / "out")
    model = AutoModelForZeroShotPointCloudClassification.from_pretrained(tmp_path / "out")
    with raises(ValueError, naming="OpenCLIP"):
        model.encode_labels(["chair"])
    with raises(ValueError, naming="text_embeds"):
        model(torch.from_numpy(points("cloud", 1, 600, 6)), text_embeds=torch.randn(2, 512))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pc_encoder.gamma": torch.ones(1)}, "belong to no known part: gamma"),
        ({"pc_encoder.cls_token": None}, "'class_token' is missing"),
        ({"pc_encoder.lift.2.bias": None}, "tensors do not fit; missing: openshape.lift_norm.bias"),
        ({"pc_encoder.lift.2.bias": torch.zeros(3)}, "of another shape: openshape.lift_norm.bias"),
        ({"pc_encoder.cls_token": torch.full((512,), torch.nan)}, "NaN or infinite numbers"),
    ],
)
def test_other_files_are_refused_in_one_line(change, message, tmp_path):
    content = {name: tensor for name, tensor in (openshape_flat("vitb32") | change).items() if tensor is not None}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message) as error:
        convert_openshape(tmp_path / "model.pt", tmp_path / "out")
    assert str(error.value).startswith(str(tmp_path / "model.pt")) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("bias", [torch.tensor(3.0), torch.zeros(1), torch.zeros(1023)])
def test_biases_of_a_gate_that_cannot_be_halved_are_refused(bias, tmp_path):
    content = uni3d("uni3d_manifest_tiny")
    content["module"]["point_encoder.visual.blocks.0.mlp.fc1.bias"] = bias
    torch.save(content, tmp_path / "model.pt")
    with raises(ValueError, naming="model.pt"):
        convert_uni3d(tmp_path / "model.pt", tmp_path / "out")


def test_a_converted_config_names_the_text_tower(tmp_path):
    torch.save(openshape_flat("vitl14"), tmp_path / "model.pt")
    convert_openshape(tmp_path / "model.pt", tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stored["parts"] == {"text_tower": {"name_or_path": "openai/clip-vit-large-patch14"}}

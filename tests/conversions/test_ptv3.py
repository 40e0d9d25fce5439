"""Checkpoints of the published layout of Point Transformer V3 become directories that open and compute the same."""

import json

import pytest
import torch
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from hf_any3d import AutoModelForPointCloudSegmentation, PointTransformerV3Config, PointTransformerV3Processor
from hf_any3d.cli import app
from hf_any3d.conversions import convert_ptv3
from hf_any3d.conversions.point_transformer_v3.names import convert_ptv3_state_dict, ptv3_fields
from tests.errors import raises
from tests.modeling.ptv3_case import Ptv3Case, ptv3_original


@pytest.mark.slow
def test_a_released_file_converts_on_the_command_line_and_computes_as_released(tmp_path):
    case = Ptv3Case("ptv3_utonia")
    torch.save(ptv3_original(), tmp_path / "utonia.pth")
    arguments = ["convert", tmp_path / "utonia.pth", "--output", tmp_path / "out"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "PointTransformerV3Model" in result.output and "--license" in result.output
    model, processor = (auto.from_pretrained(tmp_path / "out") for auto in (AutoModel, AutoProcessor))
    assert type(processor) is PointTransformerV3Processor and (processor.factor, processor.grid_size) == (0.5, 0.01)
    state = convert_ptv3_state_dict(case.original, ptv3_fields(case.arguments))
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    model.config.depth_of_batch = True
    with torch.no_grad():
        output = model(**case.voxels, output_point_features=True)
    features = torch.cat(
        [cloud[: len(own)] for cloud, own in zip(output.point_features, case.voxels["points"], strict=True)]
    )
    assert case.error("flash.upcast_all", features) <= case.manifest["tolerance"]["features"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: unknown" in card and "not evaluated" in card and card.count("## License") == 1
    assert "9 channels per point: coordinates, colors" in card and "Every tensor of it is accounted for." in card


@pytest.mark.slow
def test_a_linear_head_makes_a_segmentation_model(tmp_path):
    torch.save(ptv3_original("sonata"), tmp_path / "sonata.pth")
    width = sum(ptv3_original("sonata")["config"]["enc_channels"])
    head = {"seg_head.weight": torch.randn(20, width), "seg_head.bias": torch.randn(20)}
    content = {"config": {"backbone_out_channels": width, "num_classes": 20}, "state_dict": head}
    torch.save(content, tmp_path / "head.pth")
    facts = convert_ptv3(tmp_path / "sonata.pth", tmp_path / "out", head=tmp_path / "head.pth")
    assert facts["model"] == "PointTransformerV3ForPointCloudSegmentation"
    model = AutoModelForPointCloudSegmentation.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    raw = Ptv3Case("ptv3_sonata").raw[1]
    inputs = processor({"points": raw["coord"], "colors": raw["color"] / 255, "normals": raw["normal"]})
    with torch.no_grad():
        logits = model(**inputs).logits
        features = model.point_transformer_v3(**inputs, output_point_features=True).point_features
    torch.testing.assert_close(logits, features @ head["seg_head.weight"].T + head["seg_head.bias"])
    assert logits.shape == (1, len(raw["coord"]), 20)


def test_what_a_file_does_not_say_is_as_the_original_constructor_has_it():
    encoder = ptv3_fields({"enc_mode": True})
    assert encoder["hidden_sizes"] == [48, 96, 192, 384, 512] and encoder["depths"] == [3, 3, 3, 12, 3]
    assert encoder["num_attention_heads"] == [3, 6, 12, 24, 32] and encoder["patch_sizes"] == [1024] * 5
    assert (encoder["in_channels"], encoder["curves"], encoder["pooling_strides"]) == (
        6,
        ["z", "z-trans"],
        [2, 2, 2, 2],
    )
    assert encoder["drop_path_rate"] == 0.3 and not any(name.startswith("decoder_") for name in encoder)
    whole = ptv3_fields({})
    assert whole["use_decoder"] and not encoder["use_decoder"]
    decoder = {"hidden_sizes": [96, 96, 192, 384], "depths": [3, 3, 3, 3], "num_attention_heads": [6, 6, 12, 32]}
    assert {name: whole[f"decoder_{name}"] for name in decoder} == decoder
    PointTransformerV3Config(**whole), PointTransformerV3Config(**encoder)


def change(content: dict, entry: str, name: str, value: object) -> dict:
    changed = {key: dict(part) for key, part in content.items()}
    changed[entry][name] = value
    return changed


@pytest.mark.parametrize(
    ("entry", "name", "value", "message"),
    [
        ("state_dict", "embedding.other.weight", torch.ones(1), "belong to no known part: embedding.other"),
        ("state_dict", "enc.enc0.block0.cpe.0.bias", torch.zeros(3), "of another shape: blocks.0.positions"),
        ("state_dict", "enc.enc0.block0.attn.rope.inv_freq", torch.ones(3), "expected the frequencies of rope_base"),
        (
            "state_dict",
            "enc.enc0.block0.attn.rope.inv_freq",
            torch.ones(50, 60),
            r"the shape \(50, 60\) and begins with 1",
        ),
        ("config", "enc_depths", (1, 5, 2, 3, 1), "missing: blocks.10"),
        ("config", "enc_depths", (1, 1, 1, 1, 1), "left over: blocks.1.1"),
        ("config", "enc_channels", (18, 36, 54, 72), "hidden_sizes=.*; expected 5 entries"),
        ("config", "stem", "conv", "config has 'stem'; expected some of"),
    ],
)
def test_other_files_are_refused_in_one_line(entry, name, value, message, tmp_path):
    torch.save(change(ptv3_original(), entry, name, value), tmp_path / "utonia.pth")
    with pytest.raises(ValueError, match=message) as error:
        convert_ptv3(tmp_path / "utonia.pth", tmp_path / "out")
    text = str(error.value)
    assert text.startswith(str(tmp_path / "utonia.pth")) and "\n" not in text and len(text) < 2_000
    assert not (tmp_path / "out").exists()


def test_files_without_settings_and_unknown_presets_are_refused(tmp_path):
    torch.save({"state_dict": ptv3_original()["state_dict"]}, tmp_path / "pretrain.pth")
    with raises(ValueError, naming="'config' is missing"):
        convert_ptv3(tmp_path / "pretrain.pth", tmp_path / "out")
    torch.save(ptv3_original(), tmp_path / "utonia.pth")
    with raises(ValueError, naming="moon"):
        convert_ptv3(tmp_path / "utonia.pth", tmp_path / "out", preset="moon")
    with raises(FileNotFoundError, naming="none.pth"):
        convert_ptv3(tmp_path / "none.pth", tmp_path / "out")


def test_a_converted_config_has_the_released_sizes_and_sound_behavior(tmp_path):
    torch.save(ptv3_original("concerto"), tmp_path / "concerto.pth")
    convert_ptv3(tmp_path / "concerto.pth", tmp_path / "out", preset="concerto_outdoor")
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (stored["grid_size"], stored["shuffle_curves"], stored["depth_of_batch"]) == (0.01, "training", False)
    assert stored["hidden_sizes"] == [32, 48, 64, 80, 112] and not stored["use_mask_token"]

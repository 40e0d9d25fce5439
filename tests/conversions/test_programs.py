"""The program of a checkpoint is found by its tensors, and files that belong together are given in any order."""

import json

import pytest
import torch
from typer.testing import CliRunner

from hf_any3d import conversions
from hf_any3d.cli import app
from hf_any3d.conversions.programs import PROGRAMS, recognize
from tests.conversions.act_originals import Original
from tests.conversions.aligned_originals import openshape_training, patchalign3d

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")


@pytest.fixture
def recognized(tmp_path):
    def of(stored):
        torch.save(stored, tmp_path / "file.pth")
        return recognize(tmp_path / "file.pth")

    return of


@pytest.mark.parametrize(
    ("mark", "name"),
    [
        ("blocks.layers.0.gft_adapter.down.weight", "PointGST on PointGPT"),
        ("encoder.blocks.blocks.0.gft_adapter.down.weight", "PointGST with graphs of two sizes"),
        ("blocks.layers.0.adapt_mlp.down_proj.weight", "DAPT on PointGPT"),
        ("blocks.dgcnn_cls3.conv5.0.weight", "IDPT's part segmentation"),
        ("cls_prompt_list.0", "VPT-deep in IDPT's program"),
    ],
)
def test_models_that_are_not_built_here_are_named(recognized, mark, name):
    state = Original("cls").content()["base_model"] | {f"module.{mark}": torch.ones(3, 3)}
    with pytest.raises(ValueError, match=f"a model of {name}.*, for which there is no class here"):
        recognized({"base_model": state})


def test_every_program_names_a_public_conversion():
    assert {program.convert for program in PROGRAMS} | {"convert_minigpt3d_parts"} == {*conversions.__all__}


def convert(*words):
    result = CliRunner().invoke(app, ["convert", *map(str, words)])
    return result.exit_code, result.stdout + result.stderr


def test_files_that_do_not_belong_together_are_named(tmp_path):
    torch.save(openshape_training(), tmp_path / "one.pt")
    torch.save(patchalign3d(), tmp_path / "other.pt")
    code, text = convert(tmp_path / "one.pt", tmp_path / "other.pt", "--output", tmp_path / "out")
    assert code == 1 and "other.pt: a file of PatchAlign3D, but " in text and "one.pt is one of OpenShape" in text
    torch.save(
        {"state_dict": {"seg_head.weight": torch.ones(2, 3), "seg_head.bias": torch.ones(2)}}, tmp_path / "h.pt"
    )
    code, text = convert(tmp_path / "h.pt", "--output", tmp_path / "out")
    assert code == 1 and "h.pt: Point Transformer V3 lacks checkpoint; give these files too" in text
    code, text = convert(tmp_path, "--output", tmp_path / "out")
    assert code == 1 and "a directory with no config.json; expected one of act3d" in text
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    code, text = convert(tmp_path, "--output", tmp_path / "out")
    assert code == 1 and "a directory with model_type 'vit'; expected one of act3d, blip-2, phi" in text
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "act3d"}))  # a part that is converted already
    code, text = convert(tmp_path, "--output", tmp_path / "out")
    assert code == 1 and tmp_path.name in text


def test_options_of_another_program_are_refused(tmp_path):
    torch.save(patchalign3d(), tmp_path / "file.pt")
    code, text = convert(tmp_path / "file.pt", "--output", tmp_path / "out", "--preset", "sonata", "--store-encoder")
    assert code == 1 and not (tmp_path / "out").exists()
    expected = (
        "--preset, --store-encoder: not for a file of PatchAlign3D; expected --group-size, --license, --num-groups"
    )
    assert expected in " ".join(text.split())
    code, text = convert(tmp_path / "file.pt")
    assert code == 1 and "file.pt: give the directory to create with --output" in text
    code, text = convert(tmp_path / "missing.pt", "--kind", "cls")
    assert code == 1 and "missing.pt" in text

"""The program of a checkpoint is found by its tensors, and files that belong together are given in any order."""

import json

import pytest
import torch
from typer.testing import CliRunner

from hf_any3d import conversions
from hf_any3d.cli import app
from hf_any3d.conversions.programs import PROGRAMS, plan, recognize
from tests.conversions.act_originals import Original
from tests.conversions.aligned_originals import openshape_training, patchalign3d, uni3d
from tests.conversions.minigpt3d_originals import Originals
from tests.conversions.test_imagebind_audio import original as imagebind
from tests.errors import raises
from tests.modeling.detr3d.reference_case import DetectionCase
from tests.modeling.ptv3_case import ptv3_original
from tests.modeling.spatiallm.reference_case import SpatialLMCase
from tests.tiny_encoders import tiny_config

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")


@pytest.fixture
def recognized(tmp_path):
    def of(stored):
        torch.save(stored, tmp_path / "file.pth")
        return recognize(tmp_path / "file.pth")

    return of


@pytest.mark.parametrize(
    ("convert", "original"),
    [
        ("convert_openshape", openshape_training),
        ("convert_uni3d", lambda: uni3d("uni3d_giant_reduced")),
        ("convert_patchalign3d", patchalign3d),
        ("convert_ptv3", ptv3_original),
        ("convert_detr3d", lambda: {"model": DetectionCase("detr3d_sunrgbd").original}),
        ("convert_spatiallm", lambda: SpatialLMCase("qwen").original),
        ("convert_imagebind_audio", lambda: imagebind(tiny_config("imagebind_audio"))),
    ],
)
def test_the_program_shows_in_the_tensors(recognized, convert, original):
    assert recognized(original()).program.convert == convert


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


def test_files_of_minigpt3d_may_come_in_any_order(tmp_path):
    arguments = Originals().write(tmp_path / "in", 3, 4)
    assert plan(list(arguments.values())[::-1]) == ("convert_minigpt3d", arguments)
    parts = {name: arguments[name] for name in ("qformer", "point_encoder", "language_model")}
    assert plan(list(parts.values())) == ("convert_minigpt3d_parts", parts)
    with raises(ValueError, naming="blip2.pth"):
        plan([*parts.values(), parts["qformer"]])
    with raises(ValueError, naming="stage_3.pth"):
        plan([path for name, path in arguments.items() if name != "qformer"])


def test_every_program_names_a_public_conversion():
    others = {"convert_minigpt3d_parts", "convert_detr3d_back", "convert_ptv3_back", "convert_spatiallm_back"}
    assert {program.convert for program in PROGRAMS} | others == set(conversions.__all__)


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
    assert code == 1 and "h.pt: a head of Point Transformer V3 alone; give the file of its encoder too" in text
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
    expected = "--preset, --store-encoder: not for a file of PatchAlign3D; expected --group-size, --num-groups"
    assert expected in " ".join(text.split())
    code, text = convert(tmp_path / "file.pt")
    assert code == 1 and "file.pt: --output is missing; give the directory to create" in text
    code, text = convert(tmp_path / "missing.pt", "--kind", "cls")
    assert code == 1 and "missing.pt" in text

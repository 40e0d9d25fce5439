"""A released classifier with PointGST's adapters opens by every door, on a named base or with its own."""

import json

import pytest
import torch
from peft import AutoPeftModel, PeftModel
from transformers import pipeline
from typer.testing import CliRunner

from hf_any3d import ActForPointCloudClassification, ActModel, PointGSTConfig
from hf_any3d.cli import app
from hf_any3d.conversions import convert_act, convert_pointgst
from hf_any3d.conversions.programs import plan
from tests.reference.fill import fill
from tests.tuners.peft_case import FOLDER, PeftCase

CHOICES = {"num_groups": 64, "group_size": 16, "num_attention_heads": 4}


def released() -> dict[str, torch.Tensor]:
    """The content of a small file as the program writes it."""
    state = PeftCase("peft_pgst_64").original
    return {"base_model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 300}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The authors' file, and the directory of the base that it was trained on."""
    folder = tmp_path_factory.mktemp("released")
    torch.save(released(), folder / "scan.pth")
    # The base as it was before the training: another head, class token and other statistics.
    before = {name: tensor for name, tensor in PeftCase("peft_pgst_64").original.items() if "gft_adapter" not in name}
    for name, tensor in before.items():
        if tensor.ndim and (name.startswith("cls_") or "running" in name):
            before[name] = torch.from_numpy(abs(fill("before." + name, tensor.shape)))
    torch.save({"base_model": before}, folder / "base.pth")
    convert_act(folder / "base.pth", "cls", folder / "classifier", **CHOICES)
    ActModel.from_pretrained(folder / "classifier").save_pretrained(folder / "base")
    return folder


def logits_of(model):
    with torch.no_grad():
        return model.eval()(points=PeftCase("peft_pgst_64").points).logits


@pytest.mark.parametrize("is_named", [True, False])
def test_a_file_opens_by_every_door(files, tmp_path, is_named):
    assert plan([files / "scan.pth"]) == ("convert_pointgst", {"checkpoint": files / "scan.pth"})
    named = {"base": files / "base"} if is_named else {}
    facts = convert_pointgst(files / "scan.pth", tmp_path / "out", **named, **CHOICES)
    assert facts["trained_parameters"] == PeftCase("peft_pgst_64").manifest["trained_parameters"]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert {key: config[key] for key in ("transform", "signs", "distances", "scale_over", "curve_cell", "r")} == {
        "transform": "published",
        "signs": "solver",
        "distances": "expanded",
        "scale_over": "batch",
        "curve_cell": 0.01,
        "r": 8,
    }
    recorded = json.loads((tmp_path / "out" / "config.json").read_text())["parts"]["base"]
    assert (recorded.get("name_or_path") == str(files / "base")) == is_named
    assert (tmp_path / "out" / "base").is_dir() != is_named

    opened = AutoPeftModel.from_pretrained(tmp_path / "out").eval()
    case = PeftCase("peft_pgst_64")
    # Without the adapters' last layer the model is the base with the trained head: the stored answer of that.
    with torch.no_grad():
        for name, weight in opened.named_parameters():
            if "pointgst_up" in name:
                weight.zero_()
    case.check("up_zero.logits", logits_of(opened))

    expected = logits_of(ActForPointCloudClassification.from_pretrained(tmp_path / "out"))
    if is_named:
        base = ActForPointCloudClassification.from_pretrained(files / "base", num_labels=5)
        torch.testing.assert_close(logits_of(PeftModel.from_pretrained(base, tmp_path / "out")), expected)
    answers = pipeline("point-cloud-classification", model=str(tmp_path / "out"))(list(case.points.numpy()), top_k=1)
    assert len(answers) == len(expected)


def test_another_base_is_refused(files, tmp_path):
    other = ActModel.from_pretrained(files / "base")
    with torch.no_grad():
        other.blocks.layers[1].mlp.fc1.bias += 0.1
    other.save_pretrained(tmp_path / "other")
    words = ["convert", files / "scan.pth", "--output", tmp_path / "out", "--base", tmp_path / "other"]
    words += [word for name, value in CHOICES.items() for word in ("--" + name.replace("_", "-"), value)]
    answer = CliRunner().invoke(app, [str(word) for word in words])
    assert answer.exit_code and "fc1.bias; give the encoder that it was trained with as --base" in answer.output
    assert not (tmp_path / "out").exists()


def test_released_files_have_the_parameters_of_the_method():
    for name in ("scan", "modelnet"):
        manifest = json.loads((FOLDER / f"peft_released_pgst_{name}.json").read_text())
        sizes = manifest["constructor_args"]
        config = PointGSTConfig.published()
        assert (config.r, config.local_size) == (sizes["rank"], sizes["local"])
        width, r = sizes["trans_dim"], config.r
        own = 2 * width * r + width + r * r + 6 * r
        assert own == manifest["adapter_per_block"]
        assert own * sizes["depth"] == manifest["adapter_parameters"]

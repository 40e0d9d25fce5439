"""A released classifier with adapters opens by every door, on a named base or with its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, PeftModel
from transformers import pipeline
from typer.testing import CliRunner

from hf_any3d import ActForPointCloudClassification, ActModel, PointGSTConfig
from hf_any3d.cli import app
from hf_any3d.conversions import convert_act, convert_act_adapter
from hf_any3d.conversions.act.adapter_names import PROGRAMS, added_names
from hf_any3d.conversions.programs import plan
from hf_any3d.conversions.renaming import rename_tensors
from tests.errors import raises
from tests.reference.fill import fill
from tests.tuners.peft_case import FOLDER, PeftCase, added_by
from tests.turns import ALL_PAIRS


@dataclass
class File:
    """A small file of a program.

    Args:
        case: The stored run with these weights.
        choices: What its tensors do not show.
        logits: The answer to compare, under the stored run's name.
        config: Fields of the adapter's config.
    """

    case: str
    choices: dict[str, Any]
    logits: str
    config: dict[str, Any]


def _sizes(groups: int, size: int) -> dict[str, int]:
    return {"num_groups": groups, "group_size": size, "num_attention_heads": 4}


FILES = {
    # The stored answer is that without the adapters' last layer: others need the solver's signs.
    "pointgst": File(
        "peft_pgst_64",
        _sizes(64, 16),
        "up_zero.logits",
        {"transform": "published", "signs": "solver", "distances": "expanded", "scale_over": "batch", "r": 8},
    ),
    "idpt": File(
        "peft_idpt_middle",
        {**_sizes(26, 8), "prompt_layer": 1},
        "eval.logits",
        {"prompt_layers": 1, "prompt_module": "dgcnn", "train_position": False},
    ),
    "dapt": File("peft_dapt", _sizes(16, 8), "eval.logits", {"r": 6, "positions": "once"}),
    "ppt": File("peft_ppt", {**_sizes(16, 8), "prompt_groups": 7}, "eval.logits", {"num_groups": 7, "r": 256}),
}


def released(method: str) -> dict[str, Any]:
    """The content of a small file as the program writes it."""
    state = PeftCase(FILES[method].case).original
    return {"base_model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 300}


@pytest.fixture(scope="module", params=FILES)
def files(request, tmp_path_factory):
    """The authors' file, and the directory of the base that it was trained on."""
    method = request.param
    folder = tmp_path_factory.mktemp(method)
    torch.save(released(method), folder / "scan.pth")
    # The base as it was before the training: another head, class token and other statistics.
    state = PeftCase(FILES[method].case).original
    added = added_by(method, state)
    before = {name: tensor for name, tensor in state.items() if name not in added}
    for name, tensor in before.items():
        if tensor.ndim and (name.startswith("cls_") or "running" in name):
            before[name] = torch.from_numpy(abs(fill("before." + name, tensor.shape)))
    # A plain classifier reads the class token and the maximum.
    before["cls_head_finetune.0.weight"] = before["cls_head_finetune.0.weight"][:, : 2 * len(before["norm.weight"])]
    torch.save({"base_model": before}, folder / "base.pth")
    sizes = {name: FILES[method].choices[name] for name in _sizes(1, 1)}
    convert_act(folder / "base.pth", "cls", folder / "classifier", **sizes)
    ActModel.from_pretrained(folder / "classifier").save_pretrained(folder / "base")
    return method, folder


def logits_of(model, method):
    with torch.no_grad():
        return model.eval()(points=PeftCase(FILES[method].case).points).logits


@pytest.mark.slow
@pytest.mark.parametrize("turn", [0, 1] if ALL_PAIRS else [0])
def test_a_file_opens_by_every_door(files, tmp_path, turn):
    method, folder = files
    # By turns of the methods on a named base and with their own.
    is_named = list(FILES).index(method) % 2 == turn
    file, case = FILES[method], PeftCase(FILES[method].case)
    named = plan([folder / "scan.pth"])
    assert named == ("convert_act_adapter", {"checkpoint": folder / "scan.pth", "method": method})
    base = {"base": folder / "base"} if is_named else {}
    facts = convert_act_adapter(**named[1], output=tmp_path / "out", **base, **file.choices)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "\nmodel_name: out\n" in card and ".tmp" not in card, "the directory was written under another name"
    assert facts["trained_parameters"] == case.manifest["trained_parameters"]
    path = tmp_path / "out" / "adapter_config.json"
    config = json.loads(path.read_text())
    assert {key: config[key] for key in file.config} == file.config
    recorded = json.loads((tmp_path / "out" / "config.json").read_text())["parts"]["base"]
    # A directory has no public name, so that what it holds is stored.
    assert "name_or_path" not in recorded and (tmp_path / "out" / "base").is_dir()
    if method == "ppt":  # the stored run has further patches of another size, which no released file has
        path.write_text(json.dumps(config | {"group_size": 12}))

    opened = AutoPeftModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        for name, weight in opened.named_parameters():
            if "pointgst_up" in name:
                weight.zero_()
    case.check(file.logits, logits_of(opened, method))

    whole = ActForPointCloudClassification.from_pretrained(tmp_path / "out")
    expected = logits_of(whole, method)
    if is_named:
        base = ActForPointCloudClassification.from_pretrained(folder / "base", config=whole.config)
        torch.testing.assert_close(logits_of(PeftModel.from_pretrained(base, tmp_path / "out"), method), expected)
    answers = pipeline("point-cloud-classification", model=str(tmp_path / "out"))(list(case.points.numpy()), top_k=1)
    assert len(answers) == len(expected)


@pytest.mark.slow
def test_another_base_is_refused(files, tmp_path):
    method, folder = files
    other = ActModel.from_pretrained(folder / "base")
    with torch.no_grad():
        other.blocks.layers[1].mlp.fc1.bias += 0.1
    other.save_pretrained(tmp_path / "other")
    words = ["convert", folder / "scan.pth", "--output", tmp_path / "out", "--base", tmp_path / "other"]
    words += [word for name, value in FILES[method].choices.items() for word in ("--" + name.replace("_", "-"), value)]
    answer = CliRunner().invoke(app, [str(word) for word in words])
    assert answer.exit_code and "fc1.bias; give the encoder that it was trained with as --base" in answer.output
    assert not (tmp_path / "out").exists()


def test_options_of_other_methods_are_refused(tmp_path):
    torch.save(released("dapt"), tmp_path / "file.pth")
    with raises(ValueError, naming="prompt_layer"):
        convert_act_adapter(tmp_path / "file.pth", tmp_path / "out", "dapt", prompt_layer=2)


@pytest.mark.parametrize("name", ["scan", "modelnet"])
def test_released_files_have_the_parameters_of_pointgst(name):
    manifest = json.loads((FOLDER / f"peft_released_pgst_{name}.json").read_text())
    sizes = manifest["constructor_args"]
    config = PointGSTConfig.published()
    assert (config.r, config.local_size) == (sizes["rank"], sizes["local"])
    width, r = sizes["trans_dim"], config.r
    own = 2 * width * r + width + r * r + 6 * r
    assert own == manifest["adapter_per_block"]
    assert own * sizes["depth"] == manifest["adapter_parameters"]


def test_every_tensor_of_a_released_file_has_a_place():
    for method in ("idpt", "dapt", "ppt"):
        paths = list(FOLDER.glob(f"peft_released_{method}_*.json"))
        assert paths
        for path in paths:
            shapes = json.loads(path.read_text())["state_dict"]
            added = {n: torch.zeros(1) for n in shapes if any(mark in n for mark in PROGRAMS[method].marks)}
            own = {n: t for n, t in added.items() if not n.startswith("blocks.cls.bn")}
            assert len(rename_tensors(own, added_names(method, 12))) == len(own) > 5

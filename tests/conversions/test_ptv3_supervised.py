"""Files of the supervised layout of Point Transformer V3 become directories that compute as their program did."""

import json
import os

import numpy as np
import pytest
import torch
from transformers import AutoProcessor
from typer.testing import CliRunner

from hf_any3d import AutoModelForPointCloudSegmentation
from hf_any3d.cli import app
from hf_any3d.conversions import convert_ptv3
from hf_any3d.conversions.checkpoints import read_checkpoint
from hf_any3d.conversions.point_transformer_v3.benchmarks import BENCHMARKS
from hf_any3d.conversions.point_transformer_v3.names import convert_supervised_state_dict
from hf_any3d.conversions.point_transformer_v3.supervised import TRAINED_WITH, arguments_of, benchmark_of, fields_of
from hf_any3d.modeling.point_transformer_v3 import (
    PointTransformerV3Config,
    PointTransformerV3ForPointCloudSegmentation,
)
from tests.errors import raises
from tests.modeling.ptv3_case import SupervisedCase

PUBLISHED = {
    "scannet": ("base", "scannet"),
    "scannet200": ("base", "scannet200"),
    "s3dis_rpe": ("rpe", "s3dis"),
    "nuscenes": ("base", "nuscenes"),
    "waymo": ("base", "waymo"),
    "scannet_ppt": ("ppt", "scannet"),
    "s3dis_ppt": ("s3dis-ppt", "s3dis"),
}


@pytest.fixture
def released(tmp_path):
    """A file as the authors' training writes it, of reduced widths, and the arguments of its constructor."""

    def write(name: str = "ptv1_segment", prefix: str = "module.") -> list[str]:
        case = SupervisedCase(name)
        state = {f"{prefix}{key}": tensor for key, tensor in case.tensors().items()}
        content = {"epoch": 7, "state_dict": state, "optimizer": {"state": {}}, "best_metric_value": np.float64(0.77)}
        torch.save(content, tmp_path / "model_best.pth")
        (tmp_path / "arguments.json").write_text(json.dumps(case.arguments))
        return [str(tmp_path / file) for file in ("model_best.pth", "arguments.json", "out")]

    return write


@pytest.mark.slow
@pytest.mark.parametrize(("prefix", "program", "run"), [("module.", "1.5.1", "stale"), ("", "1.5.2", "flash")])
def test_a_released_file_converts_and_computes_as_its_program(prefix, program, run, released, tmp_path):
    file, arguments, output = released(prefix=prefix)
    options = ["--output", output, "--arguments", arguments, "--trained-with", f"pointcept-{program}"]
    options += ["--dataset", "scannet"]
    result = CliRunner().invoke(app, ["convert", file, *options])
    assert result.exit_code == 0, result.output
    model, processor = (auto.from_pretrained(output) for auto in (AutoModelForPointCloudSegmentation, AutoProcessor))
    case = SupervisedCase("ptv1_segment")
    model.config.depth_of_batch = True
    with torch.no_grad():
        logits = model(**case.voxels).logits
    found = torch.cat([own[: len(cloud)] for own, cloud in zip(logits, case.voxels["points"], strict=True)])
    assert case.error(f"{run}.logits", found) <= case.manifest["tolerance"]["logits"]
    assert processor.color_range == "signed" and len(processor.views) == 13 and processor.default_rgb is None
    assert model.config.id2label[14] == "refridgerator" and model.config.label_colors[0] == "#aec7e8"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f'block_rule="{model.config.block_rule}"' in card and "c / 127.5 - 1" in card and "ScanNet" in card


def test_the_schedule_in_a_released_file_is_left_out_and_runs_nothing(tmp_path):
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9).state_dict()
    # Older versions of torch store the function itself.
    schedule["anneal_func"] = torch.optim.lr_scheduler.OneCycleLR._annealing_cos
    content = {"state_dict": layer.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": schedule}
    torch.save(content, tmp_path / "model_best.pth")
    read = read_checkpoint(tmp_path / "model_best.pth", ("state_dict",))
    assert torch.equal(read["weight"], layer.weight)
    # The whole object, with its state, is left out too.
    whole = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
    whole.optimizer = None
    torch.save({"state_dict": layer.state_dict(), "scheduler": whole}, tmp_path / "whole.pth")
    assert torch.equal(read_checkpoint(tmp_path / "whole.pth", ("state_dict",))["weight"], layer.weight)
    # Nothing is looked up, and other objects are still refused.
    torch.save({"state_dict": {}, "other": os.path.join}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="more than tensors and plain values"):
        read_checkpoint(tmp_path / "other.pth", ("state_dict",))


@pytest.mark.slow
def test_what_a_file_cannot_tell_is_asked(released):
    file, arguments, output = released()
    with raises(ValueError, naming="--arguments"):
        convert_ptv3(file, output, trained_with="pointcept-1.5.1")
    for given in (None, "pointcept-2"):
        with raises(ValueError, naming="--trained-with"):
            convert_ptv3(file, output, arguments=arguments, trained_with=given)
    asked = {"arguments": arguments, "trained_with": "pointcept-1.6"}
    with raises(ValueError, naming="segmenter.out.bias is (20,), expected (13,)"):
        convert_ptv3(file, output, dataset="s3dis", **asked)
    with raises(ValueError, naming="kitti"):
        convert_ptv3(file, output, dataset="kitti", **asked)
    with raises(ValueError, naming="expected no preset"):
        convert_ptv3(file, output, preset="sonata", **asked)
    convert_ptv3(file, output, **asked)
    assert AutoProcessor.from_pretrained(output).color_range == "unit"
    config = PointTransformerV3Config.from_pretrained(output)
    assert (config.block_rule, config.depth_rule) == ("full", "max_plus_one")


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_recognized_and_have_exactly_our_tensors(name):
    case = SupervisedCase(f"ptv1_manifest_{name}")
    variant, dataset = PUBLISHED[name]
    original = {key.removeprefix("module."): tensor for key, tensor in case.on_meta.items()}
    found, arguments = arguments_of(original)
    stated = case.manifest["config"]
    assert found == variant
    assert all(list(value) == stated[key] for key, value in arguments.items() if isinstance(value, tuple))
    assert all(value == stated[key] for key, value in arguments.items() if not isinstance(value, tuple))
    if "ppt" in name:
        with raises(ValueError, naming="--dataset"):
            benchmark_of(original, None)
    benchmark = benchmark_of(original, dataset if "ppt" in name else None)
    assert benchmark is BENCHMARKS[dataset] and len(benchmark.hex_colors or benchmark.classes) == len(
        benchmark.classes
    )
    fields = fields_of(original, arguments, TRAINED_WITH["pointcept-1.5.1"], benchmark)
    # Of Waymo there is a configuration, but no weights.
    assert fields["block_rule"] == "branch" and (name == "waymo" or case.manifest["block_rule"] == "branch")
    with torch.device("meta"):
        model = PointTransformerV3ForPointCloudSegmentation(PointTransformerV3Config(**fields))
    state = convert_supervised_state_dict(original, fields)
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == {
        key: tensor.shape for key, tensor in state.items()
    }
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained == case.manifest["parameters"]


@pytest.mark.slow
def test_a_model_of_several_data_sets_opens_for_one_of_them(released, tmp_path):
    file, arguments, output = released("ptv1_ppt")
    facts = convert_ptv3(file, output, arguments=arguments, trained_with="pointcept-1.5.1", dataset="s3dis")
    assert facts["model"] == "PointTransformerV3ForPointCloudSegmentation"
    model, case = AutoModelForPointCloudSegmentation.from_pretrained(output), SupervisedCase("ptv1_ppt")
    model.config.depth_of_batch = True
    with torch.no_grad():
        logits = model(**case.voxels).logits
    found = torch.cat([own[: len(cloud)] for own, cloud in zip(logits, case.voxels["points"], strict=True)])
    assert case.error("s3dis_stale.logits", found) <= case.manifest["tolerance"]["logits"]
    # By the classes of the data set, not by the texts, whose order is another.
    assert model.config.id2label[0] == "ceiling"

"""The original, supervised layout against stored runs of the released program: features, indices, training steps."""

from functools import partial

import pytest
import torch
from torch import nn

from hf_any3d.conversions.point_transformer_v3.benchmarks import CONDITION_CLASSES
from hf_any3d.conversions.point_transformer_v3.names import convert_supervised_state_dict, supervised_fields
from hf_any3d.modeling.layers.losses import lovasz_softmax, mean_cross_entropy
from hf_any3d.modeling.point_ops import patch_table, serialize
from hf_any3d.modeling.point_transformer_v3 import (
    PointTransformerV3Config,
    PointTransformerV3ForPointCloudClassification,
    PointTransformerV3ForPointCloudSegmentation,
    PointTransformerV3Model,
)
from tests.conversions.undone import as_theirs
from tests.modeling.point_transformer_v3.test_parity import recorded
from tests.modeling.ptv3_case import SupervisedCase

STILL = {"depth_of_batch": True, "shuffle_curves": "never", "drop_path_rate": 0.0}


def build(case: SupervisedCase, run: str = "", adaptive: bool = False, **settings):
    """The model of a case for one of its runs."""
    rules = {"block_rule": "full", "depth_rule": "max_plus_one" if run == "plus" else "max"}
    if "stale" in run or run == "branch":
        rules["block_rule"] = "branch"
    fields = supervised_fields(case.arguments | ({"pdnorm_adaptive": True} if adaptive else {}), **rules)
    has_coordinates = "coord" in case.manifest["input"]["feat"]
    fields |= {"reads_coordinates": has_coordinates, "in_channels": fields["in_channels"] + 3 * (not has_coordinates)}
    fields |= {"num_labels": case.manifest.get("num_classes", 2)} | STILL | settings
    model_class = PointTransformerV3ForPointCloudSegmentation
    if not fields["use_decoder"]:
        model_class = PointTransformerV3ForPointCloudClassification
    model = model_class(PointTransformerV3Config(**fields))
    names = "state_dict" + ("_adaptive" if adaptive else "_decoupled" if run == "decoupled" else "")
    model.load_state_dict(convert_supervised_state_dict(case.tensors(names), fields), strict=True)
    return model.eval()


def found_in(model: nn.Module, case: SupervisedCase, **given) -> dict[str, torch.Tensor]:
    found = recorded(model.point_transformer_v3)
    output = model(**(given or case.voxels))
    logits = output.logits
    if logits.ndim == 3:
        logits = torch.cat(
            [own[: len(cloud)] for own, cloud in zip(logits, (given or case.voxels)["points"], strict=True)]
        )
    return found | {"logits": logits}


def check(case: SupervisedCase, run: str, found: dict[str, torch.Tensor], least: int = 6) -> None:
    stored = {key.partition(".")[2]: key for key in case.manifest["outputs"] if key.startswith(f"{run}.")}
    tolerance = case.manifest["tolerance"]
    errors = {name: case.error(key, found[name]) for name, key in stored.items() if name in found}
    assert len(errors) >= least
    assert all(error <= tolerance["logits" if name == "logits" else "features"] for name, error in errors.items()), (
        errors
    )


RUNS = [
    ("segment", run, {"equal_patches": run == "plain"} | ({"shuffle_curves": "always"} if run == "shuffled" else {}))
    for run in ("flash", "stale", "shuffled", "plain", "plus")
]
RUNS += [
    ("rpe", "plain", {"equal_patches": True}),
    ("rpe", "plain_stale", {"equal_patches": True}),
    ("rpe", "shuffled", {"equal_patches": True, "shuffle_curves": "always"}),
    ("options", "normal", {}),
    ("options", "normal_stale", {}),
    ("options", "tiny", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "run", "settings"), RUNS)
def test_every_stored_tensor_agrees(name, run, settings, monkeypatch):
    case = SupervisedCase(f"ptv1_{name}", "tiny" if run == "tiny" else "")
    model = build(case, run, **settings)
    if "shuffle_curves" in settings:
        turns = iter(case.manifest["perms"])
        monkeypatch.setattr(torch, "randperm", lambda count, **_: torch.tensor(next(turns)))
    with torch.no_grad():
        check(case, run, found_in(model, case), 1 if run == "plus" else 6)


INDICES = [("segment", run) for run in ("", "plus", "shuffled", "plain")] + [
    ("rpe", ""),
    ("nuscenes", ""),
    ("ppt", ""),
]
INDICES += [("options", ""), ("options", "tiny")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "run"), INDICES)
def test_all_indices_are_exact(name, run, monkeypatch):
    case = SupervisedCase(f"ptv1_{name}", "tiny" if run == "tiny" else "")
    is_shuffled = run == "shuffled"
    settings = {"condition": "ScanNet"} if name == "ppt" else {}
    fields = supervised_fields(
        case.arguments, block_rule="full", depth_rule="max_plus_one" if run == "plus" else "max"
    )
    settings |= {"equal_patches": name == "rpe" or run == "plain", "in_channels": 9 - 3 * (name == "options")}
    settings |= {"in_channels": 4} if name == "nuscenes" else {}
    settings |= {"shuffle_curves": "always" if is_shuffled else "never", "depth_of_batch": True}
    settings["reads_coordinates"] = name in ("options", "nuscenes")
    model = PointTransformerV3Model(PointTransformerV3Config(**fields | settings)).eval()
    if is_shuffled:
        turns = iter(case.manifest["perms"])
        monkeypatch.setattr(torch, "randperm", lambda count, **_: torch.tensor(next(turns)))
    with torch.no_grad():
        stages = model.encode(**case.voxels).stages
    seen = set()
    for number, voxels in enumerate(stages):
        made = serialize(
            voxels.grid_coord, voxels.cloud, len(voxels.counts), model.config.curves, depths=voxels.curve_bits
        )
        pad, unpad, starts = patch_table(voxels.counts, voxels.patch_size)
        ours = {
            "code": made.code[list(voxels.turns)],
            "order": torch.stack([voxels.order(block) for block in range(len(voxels.turns))]),
            "grid_coord": voxels.grid_coord,
            "offset": torch.tensor(voxels.counts).cumsum(0),
            "pooling_inverse": voxels.inverse,
            "pad": pad,
            "unpad": unpad,
            "cu_seqlens": starts,
        }
        for key, value in ours.items():
            prefix = f"{run}." if run in ("plus", "shuffled", "plain") else ""
            stored = case.expected.get(f"{prefix}s{number}.{key}")
            if stored is not None and value is not None:
                assert torch.equal(value.long(), stored.long()), (number, key)
                seen.add(key)
        if not run:
            assert (voxels.coord - case.expected[f"s{number}.coord"]).abs().max() <= 1e-6
    assert seen >= ({"pad", "unpad"} if run == "plain" else {"order", "pooling_inverse"})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "run"), [("segment", "train"), ("segment", "train_stale"), ("rpe", "train_plain")])
def test_a_training_step_agrees(name, run):
    case = SupervisedCase(f"ptv1_{name}")
    model = build(case, run, equal_patches=name == "rpe").train()
    check_step(case, run, model, case.labels(case.manifest["num_classes"]))


def check_step(case, run, model, labels):
    found = found_in(model, case)
    check(case, run, found)
    tolerance = case.manifest["tolerance"]
    flat = torch.where(labels < 0, -100, labels)
    parts = {"ce": mean_cross_entropy(found["logits"], flat), "lovasz": lovasz_softmax(found["logits"], flat)}
    parts["total"] = parts["ce"] + parts["lovasz"]
    stored = {key: key.rpartition(".")[2] for key in case.manifest["outputs"] if key.startswith(f"{run}.loss.")}
    for key, part in stored.items():
        assert abs(float(parts[part]) - float(case.expected[key])) <= tolerance["loss"], key
    parts["total"].backward()
    convert = partial(convert_supervised_state_dict, fields=model.config.to_dict())
    own = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    gradients = as_theirs(convert, case.tensors(), own)
    buffers = as_theirs(convert, case.tensors(), dict(model.named_buffers()))
    seen = 0
    for key in case.expected:
        if key.startswith(f"{run}.grad."):
            ours = case.sampled(key, gradients[key.removeprefix(f"{run}.grad.")])
            own = case.expected[key]
            assert (ours - own).abs().max() <= 2e-4 + 1e-3 * own.abs().max(), key
            seen += 1
        elif key.startswith(f"{run}.buffer."):
            ours = buffers[key.removeprefix(f"{run}.buffer.")]
            assert (ours.float() - case.expected[key].float()).abs().max() <= tolerance["buffers"], key
            seen += 1
    assert seen >= 3


SETS = {"scannet": "ScanNet", "structured3d": "Structured3D", "s3dis_stale": "S3DIS", "adaptive": "S3DIS"}
SETS |= {"train": "S3DIS", "decoupled": "ScanNet"}


@pytest.mark.slow
@pytest.mark.parametrize("run", SETS)
def test_norms_and_heads_of_several_data_sets_agree(run):
    case = SupervisedCase("ptv1_ppt")
    head = "conditions" if run == "decoupled" else "texts"
    classes = CONDITION_CLASSES
    settings = {"segmentation_head": head, "text_embedding_size": 32, "condition_classes": classes}
    settings |= {"condition": SETS[run], "condition_size": 256, "num_labels": len(classes[SETS[run]])}
    model = build(case, run, adaptive=run == "adaptive", **settings)
    labels = case.labels(len(classes[SETS[run]]))
    if run == "train":
        check_step(case, run, model.train(), labels)
        gradients = {name for name, weight in model.named_parameters() if weight.grad is not None}
        assert not any(".norms.0." in name or ".norms.2." in name for name in gradients)
        return
    with torch.no_grad():
        found = found_in(model, case)
    check(case, run, found)
    flat = torch.where(labels < 0, -100, labels)
    loss = mean_cross_entropy(found["logits"], flat) + lovasz_softmax(found["logits"], flat)
    assert abs(float(loss) - float(case.expected[f"{run}.loss"])) <= case.manifest["tolerance"]["loss"]

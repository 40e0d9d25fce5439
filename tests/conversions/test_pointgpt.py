"""Files of PointGPT's program, converted and opened: stored runs of it, released sizes, what is wrong with a file."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForPreTraining, pipeline
from transformers.initialization import no_init_weights
from typer.testing import CliRunner

from hf_any3d import AutoModelForPointCloudClassification, AutoModelForPointCloudSegmentation
from hf_any3d.cli import app
from hf_any3d.conversions.act.datasets import DATASETS
from hf_any3d.conversions.pointgpt import KINDS, convert_pointgpt_state_dict, read_pointgpt
from hf_any3d.conversions.programs import convert_files
from hf_any3d.conversions.tensor_checks import account
from hf_any3d.modeling.point_ops import chamfer_distance
from hf_any3d.modeling.pointgpt import PointGPTForPointCloudClassification, PointGPTForPreTraining
from hf_any3d.modeling.pointgpt.modeling_pointgpt import chain_of
from tests.conversions.pointgpt_case import (
    RELEASED,
    PointGPTCase,
    kind_of,
    small_file,
    small_state,
)
from tests.conversions.start_case import FOLDER
from tests.errors import raises
from tests.modeling.act.reference_case import without_chance
from tests.turns import ALL_PAIRS

CASES = [PointGPTCase(file.stem) for file in sorted(FOLDER.glob("start_gpt_*.json"))]
OPENERS = {
    "pretrain": AutoModelForPreTraining,
    "cls": AutoModelForPointCloudClassification,
    "partseg": AutoModelForPointCloudSegmentation,
}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Function from a case to its file's model, converted and opened."""

    @cache
    def open_case(name: str) -> nn.Module:
        case = next(case for case in CASES if case.name == name)
        return OPENERS[case.kind].from_pretrained(case.convert(tmp_path_factory.mktemp(name)))

    return lambda case: open_case(case.name)


def run(case: PointGPTCase, model: nn.Module) -> tuple[dict[str, Any], torch.Tensor]:
    """Return what the model computes on the case's input, by the names of the stored tensors, and the loss."""
    base, found = model.base_model, {}
    hooks = [
        base.patch_encoder.register_forward_hook(lambda module, args, out: found.update(tokens=out)),
        base.blocks.register_forward_hook(lambda module, args, out: found.update(position_absolute=args[1])),
        base.norm.register_forward_hook(lambda module, args, out: found.update(encoded=out)),
    ]
    if base.generator is not None:
        hooks += [
            base.generator.register_forward_hook(lambda module, args, out: found.update(generated=out)),
            base.generator.decoder.register_forward_hook(
                lambda module, args, out: found.update(position_relative=args[1])
            ),
        ]
    inputs: dict[str, Any] = {"points": case.points, "output_hidden_states": True}
    if case.kind == "pretrain":
        hidden = torch.zeros(len(case.points), model.config.num_groups, dtype=torch.bool)
        hidden[:, case.manifest["masked_columns"]] = True
        inputs["hidden_columns"] = hidden
    elif case.kind == "cls":
        inputs["labels"] = torch.tensor(case.manifest["labels"])
        hooks.append(model.classifier.register_forward_hook(lambda module, args, out: found.update(feature=args[0])))
    else:
        inputs |= {"labels": case.expected["labels"].long(), "category": torch.tensor(case.manifest["categories"])}
        hooks.append(
            model.propagation.register_forward_hook(lambda module, args, out: found.update(propagated=out.mT))
        )
    output = model(**inputs)
    for hook in hooks:
        hook.remove()
    found |= {"block0": output.hidden_states[1], "loss": output.loss}
    patches = base.cut(case.points)
    found["centers"] = patches.centers
    if case.kind == "pretrain":
        flat = found["generated"].flatten(0, 1), patches.neighborhoods.flatten(0, 1)
        found |= {f"loss_cd{norm}": chamfer_distance(*flat, norm) for norm in ("l1", "l2")}
        base.config.patch_order = "sampled"
        found["order"] = chain_of(base.cut(case.points).centers)
        base.config.patch_order = "chain"
    elif case.kind == "cls":
        loss = nn.functional.cross_entropy(output.logits, inputs["labels"])
        weight = model.config.generation_loss_weight
        found |= {"logits": output.logits, "loss_cross_entropy": loss, "loss_generated": (output.loss - loss) / weight}
    else:
        found["log_probabilities"] = output.logits.log_softmax(dim=-1)
    return found, output.loss


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "mode"),
    # The head of the segmentation, which takes seconds, is that of Point-MAE; the large size has the same layers.
    [
        (case, mode)
        for case in CASES
        for mode in ("eval.", "train.")
        if ALL_PAIRS or not case.name.endswith(("partseg", "large"))
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_stored_tensor_and_gradient_agrees(case, mode, opened):
    model = opened(case)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if mode == "train.":
        without_chance(model)
    else:
        model.eval()
    found, loss = run(case, model)
    errors = {}
    for key in case.expected:
        plain = key.removeprefix(mode)
        if plain in found and (key != plain or "." not in key):
            errors[key] = case.error(key, found[plain])
    stored = {key for key in case.expected if key.startswith(mode)} | {"centers", "order"} & case.expected.keys()
    assert errors.keys() == stored
    assert max(errors.values()) <= TOLERANCE, errors
    if mode == "train.":
        model.zero_grad()
        loss.backward()
        assert not case.differing_norms(model, case.kind)
    model.load_state_dict(state)


@pytest.mark.slow
def test_a_classifier_starts_from_the_pretrained_file(opened):
    pretrained, case = (next(c for c in CASES if c.name == f"start_gpt_{name}") for name in ("pretrain", "cls"))
    source = opened(pretrained)
    model = PointGPTForPointCloudClassification(opened(case).config).eval()
    model.load_state_dict(convert_pointgpt_state_dict("cls", case.original))
    own = {
        name: t for name, t in model.pointgpt.state_dict().items() if name.startswith(("class_token", "class_norm"))
    }
    model.pointgpt.load_state_dict(source.pointgpt.state_dict() | own)
    with torch.no_grad():
        found, _ = run(case, model)
    errors = {name: case.error(f"started.{name}", found[name]) for name in ("feature", "logits")}
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("name", RELEASED)
def test_every_tensor_of_a_released_file_has_its_place(name):
    kind = kind_of(name)
    original = {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, (shape, dtype) in RELEASED[name]["tensors"].items()
    }
    config, state, trained_on = read_pointgpt(FOLDER, kind, original)
    with torch.device("meta"), no_init_weights():
        account(name, state, KINDS[kind](config).state_dict())
    # A file has this many parameters, and what nothing reads.
    trained = sum(
        math.prod(shape)
        for key, (shape, dtype) in RELEASED[name]["tensors"].items()
        if "running_" not in key and dtype != "int64"
    )
    assert trained == RELEASED[name]["parameters"]
    assert trained_on is (
        None if kind == "pretrain" else DATASETS["scanobjectnn" if kind == "cls" else "shapenetpart"]
    )
    assert (config.num_groups, config.group_size) == (64 if kind == "pretrain" else 128, 32)
    heads, layers = {"S": (6, 12), "B": (12, 12), "L": (16, 24)}[name[-1]]
    assert (config.num_attention_heads, config.num_hidden_layers) == (heads, layers)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_files_open_by_the_command_the_auto_classes_and_pipelines(kind, tmp_path):
    file, output = tmp_path / "file.pth", tmp_path / "out"
    torch.save(small_file(kind), file)
    words = ["convert", str(file), "--output", str(output), "--num-groups", "16"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    card = (output / "README.md").read_text()
    assert "Nothing reads `blocks.increase_dim`" in card and ("drawn" in card) == (kind == "pretrain")
    cloud = torch.rand(200, 3).numpy()
    if kind == "pretrain":
        assert "no file has class_token.token, class_token.position, class_norm.weight" in result.stdout
        assert isinstance(AutoModelForPreTraining.from_pretrained(output), PointGPTForPreTraining)
        model = AutoModel.from_pretrained(output)
        assert model.class_token.token.std() > 0.01 and model.class_norm.weight.eq(1).all()
        # Drawn the same in each conversion.
        convert_files([file], tmp_path / "again", {"num_groups": 16})
        assert torch.equal(AutoModel.from_pretrained(tmp_path / "again").class_token.token, model.class_token.token)
        answer = pipeline("point-cloud-feature-extraction", model=str(output))(cloud)
        assert answer["pooled"].shape == (128,) and answer["tokens"].shape == (16, 64)
        # A start of every head
        for opener in (AutoModelForPointCloudClassification, AutoModelForPointCloudSegmentation):
            head = opener.from_pretrained(output, num_labels=3, segmentation_layers=[0, 1])
            own = head.base_model.state_dict()
            assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in own.items())
    elif kind == "cls":
        assert len(pipeline("point-cloud-classification", model=str(output))(cloud, top_k=20)) == 15
    else:
        answer = pipeline("point-cloud-segmentation", model=str(output))(cloud, category=0)
        assert len(answer["labels"]) == 200


KINDS_TRIED = tuple(KINDS)
WITHOUT = {
    "pretrain": (
        "blocks.ln_f.bias",
        "generator_blocks.ln_f.weight",
        "encoder.first_conv.0.bias",
        "blocks.increase_dim.0.bias",
        "sos_pos",
        "norm.weight",
    ),
    "cls": (
        "cls_token",
        "blocks.cls_norm.bias",
        "blocks.layers.1.attn.in_proj_weight",
        "blocks.cls_head_finetune.4.weight",
    ),
    "partseg": (
        "norm.bias",
        "label_conv.0.weight",
        "propagation_0.mlp_convs.1.bias",
        "convs3.bias",
        "generator_blocks.layers.0.mlp.0.bias",
        "cls_pos",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_too_many_or_too_few_tensors_is_refused_by_its_name(kind, tmp_path):
    state, file = small_state(kind), tmp_path / "file.pth"
    prefix = "GPT_Transformer." if kind == "pretrain" else ""
    names = list(state)
    changed = {f"without {name}": {k: t for k, t in state.items() if k != prefix + name} for name in WITHOUT[kind]}
    changed |= {
        "first half": {name: state[name] for name in names[: len(names) // 2]},
        "last half": {name: state[name] for name in names[len(names) // 2 :]},
        "no generator": {name: state[name] for name in names if "generator" not in name},
        "one more": state | {f"{prefix}blocks.surprise.weight": torch.ones(3)},
        "another width": state | {f"{prefix}sos_pos": torch.ones(1, 1, 65)},
        "no layer 0": {name: state[name] for name in names if ".layers.0." not in name},
    }
    for number, (what, altered) in enumerate(changed.items()):
        # By turns, each with every other kind of file.
        if not ALL_PAIRS and number % 2 != KINDS_TRIED.index(kind) % 2:
            continue
        assert len(altered) != len(state) or what == "another width", what
        torch.save(small_file(kind, altered), file)
        with pytest.raises(ValueError) as caught:
            convert_files([file], tmp_path / "out", {"num_groups": 16})
        message = str(caught.value)
        assert message.startswith(f"{file}: ") and "PointGPT" in message and "\n" not in message, (what, message)
        assert "ACT" not in message and "MiniGPT" not in message, (what, message)
        assert not (tmp_path / "out").exists()


def test_what_cannot_be_meant_is_refused(tmp_path):
    file = tmp_path / "file.pth"
    for kind, options, named in (
        ("pretrain", {"dataset": "modelnet40"}, "dataset"),
        ("cls", {"group_size": 31}, "group_size=31; its patches have 8 points"),
        ("cls", {"dataset": "none"}, "--num-groups"),
        ("partseg", {"num_groups": 16, "dataset": "s3dis"}, "dataset is 's3dis'"),
    ):
        torch.save(small_file(kind), file)
        with raises(ValueError, naming=named):
            convert_files([file], tmp_path / "out", options)
    for name in ("blocks.layers.0.gft_adapter.down.weight", "blocks.layers.0.adapt_mlp.scale.weight"):
        torch.save(small_file("cls", small_state("cls") | {name: torch.ones(2, 2)}), file)
        with raises(ValueError, naming="on PointGPT, for which there is no class here"):
            convert_files([file], tmp_path / "out", {"num_groups": 16})

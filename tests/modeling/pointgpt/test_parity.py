"""Files of PointGPT's program, converted and opened, against stored runs of it: tensors, losses, gradients."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from hf_any3d import AutoModelForPointCloudClassification, AutoModelForPointCloudSegmentation
from hf_any3d.conversions.pointgpt import convert_pointgpt, convert_pointgpt_state_dict
from hf_any3d.modeling.point_ops import chamfer_distance
from hf_any3d.modeling.pointgpt import PointGPTForPointCloudClassification, PointGPTForPreTraining
from hf_any3d.modeling.pointgpt.modeling_pointgpt import chain_of
from tests.modeling.pointgpt.case import FOLDER, StartCase, without_chance

CASES = [StartCase(file.stem) for file in sorted(FOLDER.glob("start_gpt_*.json"))]
OPENERS = {
    "pretrain": PointGPTForPreTraining,
    "cls": AutoModelForPointCloudClassification,
    "partseg": AutoModelForPointCloudSegmentation,
}
TOLERANCE = 1e-4
over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Function from a case to its file's model, converted and opened."""

    @cache
    def open_case(name: str) -> nn.Module:
        case = next(case for case in CASES if case.name == name)
        folder = tmp_path_factory.mktemp(name)
        file = case.save(folder / "file.pth")
        settings = {"num_groups": case.num_groups, "num_attention_heads": case.heads}
        convert_pointgpt(file, folder / "model", case.kind, **settings)
        return OPENERS[case.kind].from_pretrained(folder / "model")

    return lambda case: open_case(case.name)


def run(case: StartCase, model: nn.Module) -> tuple[dict[str, Any], torch.Tensor]:
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
        hidden = torch.zeros(len(case.points), case.num_groups, dtype=torch.bool)
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
@over_cases
@pytest.mark.parametrize("mode", ["eval.", "train."])
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
        assert not case.differing_norms(model)
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

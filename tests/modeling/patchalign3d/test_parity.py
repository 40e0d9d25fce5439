"""Our encoder against stored runs of the released program, tensor by tensor."""

from functools import cache

import pytest
import torch

from hf_any3d.modeling.patchalign3d import (
    PatchAlign3DForPreTraining,
    PatchAlign3DForZeroShotPointCloudSegmentation,
    clean_label,
)
from hf_any3d.modeling.patchalign3d.modeling_patchalign3d import carry_to_points, patch_majorities, patch_shares
from hf_any3d.modeling.point_ops import group
from tests.modeling.patchalign3d.case import PatchCase, random_masks, unit_rows
from tests.reference.fill import fill, points
from tests.turns import some

TOLERANCE = {"eval.": 5e-5, "train.": 2e-4}


@cache
def segment_case() -> tuple[PatchCase, PatchAlign3DForZeroShotPointCloudSegmentation, torch.Tensor]:
    case = PatchCase("segment")
    model = case.load(PatchAlign3DForZeroShotPointCloudSegmentation(case.config()))
    texts = case.manifest["text_features"]
    return case, model, unit_rows(texts["name"], texts["shape"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", some(["eval.", "train."], left_out=["eval."]))
def test_every_stored_tensor_of_a_segmentation_agrees(mode):
    case, model, texts = segment_case()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    encoder, found = model.patchalign3d, {}
    model.train(mode == "train.")
    parts = {"reduced_tokens": encoder.patch_encoder, "positions": encoder.position_embed}
    hooks = [
        part.register_forward_hook(lambda module, args, out, name=name: found.update({name: out}))
        for name, part in parts.items()
    ]
    hooks.append(
        encoder.patch_encoder.project.register_forward_pre_hook(
            lambda module, args: found.update(patch_tokens=args[0])
        )
    )
    seen = []
    hooks.append(encoder.register_forward_hook(lambda module, args, out: seen.append(out)))
    with torch.no_grad():
        output = model(case.points, text_embeds=texts, output_hidden_states=True)
        for hook in hooks:
            hook.remove()
        if mode == "eval.":
            assert torch.equal(encoder.get_patch_features(case.points), output.patch_embeds)
            member = model(case.points, text_embeds=texts, patch_to_point="membership").logits
        else:
            member = carry_to_points(
                output.patch_logits, case.points, seen[0].centers, seen[0].patch_index, "membership"
            )
    model.load_state_dict(state)
    encoded = seen[0]
    found |= {f"block_{number}": output.hidden_states[number + 1] for number in (0, 5, 11)}
    found |= {
        "last_hidden_state": encoded.last_hidden_state,
        "patch_embeddings": encoded.last_hidden_state[:, 1:].mT,
        "patch_features": output.patch_embeds,
        "patch_logits": output.patch_logits,
        "point_logits_nearest": output.logits,
        "point_logits_membership": member,
        "point_labels_nearest": output.logits.argmax(dim=-1),
        "point_labels_nearest_centred": (output.logits - output.logits.mean(dim=1, keepdim=True)).argmax(dim=-1),
        "point_labels_membership": member.argmax(dim=-1),
    }
    found = {mode + name: tensor for name, tensor in found.items()}
    exchanged = case.points[..., [0, 2, 1]]
    neighbors = group(exchanged, encoded.patch_index)
    centers = encoded.centers[..., [0, 2, 1]]
    found |= {
        "centers": centers.mT,
        "patch_index": encoded.patch_index,
        "neighborhood": neighbors - centers.unsqueeze(2),
    }
    assert set(found) == {
        name for name in case.expected if not name.startswith({"eval.": "train.", "train.": "eval."}[mode])
    }
    errors = {key: case.error(key, tensor) for key, tensor in found.items()}
    assert errors["centers"] == 0
    assert max(errors.values()) <= TOLERANCE[mode], errors


@pytest.mark.slow
def test_first_stage_agrees():
    case = PatchCase("stage1")
    model = case.load(PatchAlign3DForPreTraining(case.config())).train()
    targets = case.manifest["targets"]
    centers = torch.cat([torch.from_numpy(points(**target["centers"])) for target in targets])
    features = torch.stack([unit_rows(**target["features"]) for target in targets])
    output = model(case.points, features, centers[..., [0, 2, 1]])  # files have exchanged axes
    output.loss.backward()
    assert output.loss.item() == pytest.approx(case.manifest["loss"], abs=1e-5)
    assert output.center_distance.item() == pytest.approx(case.manifest["center_dist_mean"], abs=1e-5)
    unit = torch.nn.functional.normalize(output.predictions, dim=-1)
    assert case.error("patch_features", unit) <= 2e-4
    assert not case.differing_norms(model)


@pytest.mark.slow
@pytest.mark.parametrize("trained", some(["all", "last_block"], left_out=["all"]))
def test_second_stage_agrees(trained):
    case = PatchCase("stage2")
    model = case.load(PatchAlign3DForZeroShotPointCloudSegmentation(case.config(trained=trained))).train()
    clouds, kept = case.manifest["clouds"], case.manifest["kept_labels"]
    most = max(len(cloud["label_names"]) for cloud in clouds)
    texts = torch.zeros(len(clouds), most, 512)
    masks = torch.zeros(len(clouds), most, case.points.shape[1], dtype=torch.bool)
    counted = torch.zeros(len(clouds), most, dtype=torch.bool)
    for number, cloud in enumerate(clouds):
        own = random_masks(cloud["masks"]["name"], cloud["masks"]["shape"])
        masks[number, : len(own)] = own
        counted[number, kept[number]] = True
        for row, label in enumerate(cloud["label_names"]):
            texts[number, row] = torch.from_numpy(fill(f"text:{clean_label(label)}", [512]))
    seen = []
    model.patchalign3d.register_forward_hook(lambda module, args, out: seen.append(out))
    output = model(case.points, text_embeds=texts, labels=masks, text_mask=counted)
    output.loss.backward()
    key = {"all": "whole.", "last_block": "last_block."}[trained]
    assert output.loss.item() == pytest.approx(case.manifest[f"{key}loss"], abs=1e-5)
    assert output.patch_accuracy.item() == pytest.approx(case.manifest[f"{key}patch_accuracy"])
    assert not case.differing_norms(model, key)
    index = seen[0].patch_index
    found = {
        "patch_index": index,
        "patch_features": output.patch_embeds,
        "patch_embeddings": seen[0].last_hidden_state[:, 1:].mT,
    }
    for number, cloud in enumerate(clouds):
        own = masks[number : number + 1, : len(cloud["label_names"])]
        found[f"targets_{number}"] = patch_shares(own, index[number : number + 1])[0]
        found[f"majority_{number}"] = patch_majorities(own, index[number : number + 1])[0]
    assert set(found) | {"whole.grad_norms", "last_block.grad_norms"} == set(case.expected)
    errors = {name: case.error(name, tensor) for name, tensor in found.items()}
    assert max(errors.values()) <= 2e-4, errors

"""Files of Point-MAE: converted, opened, and compared with stored runs of the released program, tensor by tensor."""

import pytest
import torch

from hf_any3d import ActForPartSegmentation, ActForPointCloudClassification, ActModel, PointMAEForPreTraining
from hf_any3d.modeling.act.masking import split_by_mask
from hf_any3d.modeling.point_ops import chamfer_distance
from tests.conversions.start_case import StartCase
from tests.modeling.act.reference_case import without_chance
from tests.turns import some

TOLERANCE = 1e-4


def recorded(**modules):
    """The last output of each module, by name, and the hooks that record them."""
    seen = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, args, out, name=name: seen.__setitem__(name, out))
    return seen


def check(case: StartCase, mode: str, ours: dict[str, torch.Tensor]) -> None:
    """Compare all that a case stores of a mode."""
    stored = {key.removeprefix(mode) for key in case.expected if key.startswith(mode)}
    assert stored <= ours.keys(), stored - ours.keys()
    wrong = {key: error for key in stored if (error := case.error(mode + key, ours[key])) > TOLERANCE}
    assert not wrong


def pretraining(model: PointMAEForPreTraining, case: StartCase) -> dict[str, torch.Tensor]:
    """All that the case stores of one pass."""
    seen = recorded(tokens=model.act.patch_encoder, visible=model.act.norm, decoded=model.decoder_norm)
    mask = torch.zeros(len(case.points), case.arguments["num_group"], dtype=torch.bool)
    mask.scatter_(1, torch.tensor(case.manifest["masked_indices"]), True)
    output = model(case.points, mask)
    seen |= {"centers": output.centers, "loss": output.loss, "predicted": output.predictions}
    seen["loss_cdl1"] = chamfer_distance(output.predictions.flatten(0, 1), output.targets.flatten(0, 1), "l1")
    return dict(seen)


def test_pretraining_agrees(tmp_path):
    case = StartCase("start_mae_pretrain")
    model = PointMAEForPreTraining.from_pretrained(case.convert(tmp_path))
    ours = pretraining(model, case)
    assert case.error("centers", ours["centers"]) <= TOLERANCE
    everything = ActModel.from_pretrained(tmp_path / "converted", use_class_token=False)(case.points)
    check(case, "eval.", ours | {"all_tokens": everything.last_hidden_state})
    ours = pretraining(without_chance(model), case)
    check(case, "train.", ours)
    ours["loss"].backward()
    assert case.differing_norms(model, "point_mae") == {}


def test_the_default_mask_hides_as_many_patches(tmp_path):
    case = StartCase("start_mae_pretrain")
    model = PointMAEForPreTraining.from_pretrained(case.convert(tmp_path))
    hidden = split_by_mask(model(case.points).mask)[1]
    assert hidden.shape[1] == len(case.manifest["masked_indices"][0])


def classification(model: ActForPointCloudClassification, case: StartCase) -> dict[str, torch.Tensor]:
    seen = recorded(tokens=model.act.patch_encoder, block0=model.act.blocks.layers[0], normed=model.act.norm)
    output = model(case.points, labels=torch.tensor(case.manifest["labels"]))
    feature = torch.cat([seen["normed"][:, 0], seen["normed"][:, 1:].amax(dim=1)], dim=1)
    return seen | {"logits": output.logits, "loss": output.loss, "feature": feature}


def test_a_classifier_agrees(tmp_path):
    case = StartCase("start_mae_cls")
    model = ActForPointCloudClassification.from_pretrained(case.convert(tmp_path))
    check(case, "eval.", classification(model, case))
    ours = classification(without_chance(model), case)
    check(case, "train.", ours)
    ours["loss"].backward()
    assert case.differing_norms(model, "cls") == {}


def test_a_pretraining_file_is_the_start_of_a_classifier(tmp_path):
    case, start = StartCase("start_mae_cls"), StartCase("start_mae_pretrain")
    directory = start.convert(tmp_path)
    model = ActForPointCloudClassification.from_pretrained(directory, num_labels=case.arguments["cls_dim"])
    again = ActForPointCloudClassification.from_pretrained(directory, num_labels=case.arguments["cls_dim"])
    # The class token is drawn once, and stored.
    assert torch.equal(model.act.class_token.token, again.act.class_token.token)
    assert model.act.class_token.token.std() > 0.01
    card = (directory / "README.md").read_text()
    assert "drawn with a fixed seed" in card and "2203.06604" in card
    # The stored run has its own values of what the file lacks.
    from hf_any3d.conversions.act import convert_act_state_dict

    filled = convert_act_state_dict("cls", case.original)
    lacking = {name: tensor for name, tensor in filled.items() if name.startswith(("act.class_token.", "classifier."))}
    model.load_state_dict(lacking, strict=False)
    check(case, "started.", classification(model.eval(), case))


def test_part_segmentation_agrees(tmp_path):
    case = StartCase("start_mae_partseg")
    model = ActForPartSegmentation.from_pretrained(case.convert(tmp_path))
    for mode in ("eval.", "train."):
        seen = recorded(propagated=model.propagation)
        if mode == "train.":
            without_chance(model)
        output = model(case.points, torch.tensor(case.manifest["categories"]), labels=case.expected["labels"])
        ours = {"log_probabilities": output.logits.log_softmax(dim=-1), "loss": output.loss}
        check(case, mode, ours | {"propagated": seen["propagated"].transpose(1, 2)})
    output.loss.backward()
    assert case.differing_norms(model, "partseg") == {}


@pytest.mark.parametrize("name", some(["start_mae_pretrain", "start_mae_partseg"], left_out=["start_mae_partseg"]))
def test_files_are_recognized_without_options(name, tmp_path):
    from hf_any3d.conversions.programs import convert_files

    case = StartCase(name)
    facts = convert_files([case.write(tmp_path)], tmp_path / "out", {})
    assert facts["model"] in ("PointMAEForPreTraining", "ActForPartSegmentation")

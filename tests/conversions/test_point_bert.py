"""Files of Point-BERT: converted, opened, and compared with stored runs of the released program, tensor by tensor."""

import pytest
import torch

from hf_any3d import ActForPointCloudClassification, PointBERTForPartSegmentation, PointBERTForPreTraining
from hf_any3d.conversions.act import convert_act_state_dict
from hf_any3d.conversions.programs import convert_files
from hf_any3d.data.catalog import modelnet40, scanobjectnn
from hf_any3d.modeling.act.masking import block_mask
from tests.conversions.start_case import StartCase
from tests.conversions.test_point_mae import check, classification
from tests.modeling.act.reference_case import without_chance
from tests.turns import ALL_PAIRS

TOLERANCE = 1e-4


class Pass:
    """One pass with the draws of the stored run, and all that it stores."""

    def __init__(self, model: PointBERTForPreTraining, case: StartCase):
        self.model, self.case, self.calls = model, case, {"normed": [], "class_feature": [], "logits": []}
        self.hooks = []
        for name, module in (
            ("normed", model.act.norm),
            ("class_feature", model.feature_head),
            ("logits", model.code_head),
        ):
            self.hooks.append(
                module.register_forward_hook(lambda _, args, out, name=name: self.calls[name].append(out))
            )
        self.hooks.append(
            model.average.feature_head.register_forward_hook(lambda _, args, out: self.calls.update(key=out))
        )

    def run(self) -> dict[str, torch.Tensor]:
        draws = self.case.manifest["draws"]
        kept, patches = torch.tensor(draws["mix_mask"]), self.model.act.cut(self.case.points)
        mixed = torch.where(kept[..., None], patches.centers, patches.centers.flip(0))
        masks = []
        for centers, seeds, ratios in zip(
            (patches.centers, mixed, patches.centers), draws["seed_group"], draws["ratio"], strict=True
        ):
            count = (torch.tensor(ratios, dtype=torch.float64) * centers.shape[1]).long()
            masks.append(block_mask(centers, count, seed_groups=torch.tensor(seeds)))
        output = self.model(
            self.case.points, masks[0], masks[1], masks[2], torch.tensor(draws["mix_ratio"]), kept, return_loss=True
        )
        for hook in self.hooks:
            hook.remove()
        normalize = torch.nn.functional.normalize
        return {
            "centers": output.centers,
            "codes": output.codes,
            "masks": torch.stack(masks[:2]).int(),
            "normed.call0": self.calls["normed"][0],
            "normed.call1": self.calls["normed"][1],
            "class_feature": self.calls["class_feature"][0],
            "mixed_class_feature": self.calls["class_feature"][1],
            "key_class_feature": self.calls["key"],
            "keys": normalize(self.calls["key"], dim=-1),
            "masked_logits": self.calls["logits"][0][masks[0]],
            "mixed_masked_logits": self.calls["logits"][1][masks[1]],
            "loss": output.loss,
            "loss_codes": output.code_loss,
            "loss_cutmix": output.mix_loss,
            "contrast": output.contrast_loss,
        }


def opened(folder, **settings) -> tuple[StartCase, PointBERTForPreTraining]:
    case = StartCase("start_bert_pretrain")
    directory = case.convert(folder)
    return case, PointBERTForPreTraining.from_pretrained(directory, contrast_momentum=case.arguments["m"], **settings)


def test_pretraining_agrees_in_eval_mode(tmp_path):
    case, model = opened(tmp_path)
    patches = model.act.cut(case.points)
    whole = model.act(case.points).last_hidden_state
    scores = model.autoencoder.score_codes(patches)
    # In eval mode nothing changes by itself.
    model.update_average()
    ours = Pass(model, case).run()
    model.enqueue(ours["keys"])
    assert case.error("centers", ours["centers"]) <= TOLERANCE
    further = {"all_tokens": whole, "cls_head_of_whole_cloud": model.probe_features(case.points)}
    queue = {"queue_after": model.queue, "queue_ptr_after": model.queue_place}
    check(case, "eval.", ours | further | queue | {"code_scores": scores})


def test_a_training_step_agrees(tmp_path):
    case, model = opened(tmp_path, contrast_whole_clouds=True)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    without_chance(model)
    with torch.no_grad():
        scores = model.autoencoder.score_codes(model.act.cut(case.points))
    model.load_state_dict(kept)
    ours = Pass(model, case).run()
    ours |= {"queue_after": model.queue, "queue_ptr_after": model.queue_place, "code_scores": scores}
    ours["loss_with_moco"], ours["loss"] = ours["loss"], ours["loss_codes"] + ours["loss_cutmix"]
    ours["loss_moco_and_codes"] = ours["loss_codes"] + ours["contrast"]
    check(case, "train.", ours)
    ours["loss"].backward()
    assert case.differing_norms(model, "point_bert") == {}


def test_a_training_step_trains_the_student_alone(tmp_path):
    _, model = opened(tmp_path)
    trained = {name.partition(".")[0] for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"act", "mask_token", "feature_head", "code_head"}


def with_smoothing(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The released program's own: 0.8 on the label, the rest on the others."""
    classes = logits.shape[1]
    target = torch.full_like(logits, 0.2 / (classes - 1)).scatter(1, labels[:, None], 0.8)
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()


def test_a_classifier_agrees(tmp_path):
    case = StartCase("start_bert_cls")
    model = ActForPointCloudClassification.from_pretrained(case.convert(tmp_path))
    pooled = {}
    model.act.patch_encoder.project.register_forward_pre_hook(lambda _, args: pooled.update(patch_features=args[0]))
    for mode in ("eval.", "train."):
        ours = classification(without_chance(model) if mode == "train." else model, case)
        smoothed = with_smoothing(ours["logits"], torch.tensor(case.manifest["labels"]))
        check(case, mode, ours | pooled | {"loss_smoothed": smoothed})
    ours["loss"].backward()
    assert case.differing_norms(model, "point_bert_cls") == {}


def test_a_pretraining_file_is_the_start_of_a_classifier(tmp_path):
    case = StartCase("start_bert_cls")
    start = StartCase("start_bert_pretrain").convert(tmp_path)
    model = ActForPointCloudClassification.from_pretrained(start, num_labels=case.arguments["cls_dim"])
    # All but the head is in the file, also the class token.
    filled = convert_act_state_dict("point_bert_cls", case.original)
    model.load_state_dict({name: filled[name] for name in filled if name.startswith("classifier.")}, strict=False)
    check(case, "started.", classification(model.eval(), case))


def test_part_segmentation_agrees(tmp_path):
    case = StartCase("start_bert_partseg")
    model = PointBERTForPartSegmentation.from_pretrained(case.convert(tmp_path))
    seen = {}
    parts = {
        "level1": model.fine_propagation,
        "level2": model.coarse_propagation,
        "graph1": model.fine_graph,
        "graph2": model.coarse_graph,
        "propagated": model.propagation,
    }
    for name, module in parts.items():
        module.register_forward_hook(lambda _, args, out, name=name: seen.update({name: out.transpose(1, 2)}))
    # In training mode the norms take what is there, and all else is the same.
    for mode in ("eval.", "train.") if ALL_PAIRS else ("train.",):
        if mode == "train.":
            without_chance(model)
        output = model(case.points, torch.tensor(case.manifest["categories"]), labels=case.expected["labels"])
        check(case, mode, seen | {"log_probabilities": output.logits.log_softmax(dim=-1), "loss": output.loss})
    output.loss.backward()
    assert case.differing_norms(model, "point_bert_partseg") == {}


def with_rows(case: StartCase, rows: int) -> dict[str, torch.Tensor]:
    last = "cls_head_finetune.3."
    new = {f"{last}weight": torch.arange(rows * 256).view(rows, 256) / 1e4, f"{last}bias": torch.arange(rows) / 10}
    return case.original | new


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, [f"LABEL_{number}" for number in range(40)]),
        ({"dataset": "modelnet40"}, [*modelnet40.CLASS_NAMES]),
        ({"dataset": "scanobjectnn"}, [*scanobjectnn.DATASET.class_names]),
        ({"classes": ("bolt", "nut")}, ["bolt", "nut"]),
    ],
    ids=str,
)
def test_forty_rows_are_of_the_classes_that_are_stated(options, names, tmp_path):
    """All released classifiers have forty rows, also those of fifteen classes: a file does not tell its dataset."""
    case = StartCase("start_bert_cls")
    file = case.write(tmp_path, with_rows(case, 40))
    facts = convert_files([file], tmp_path / "out", options)
    model = ActForPointCloudClassification.from_pretrained(tmp_path / "out")
    assert list(model.config.id2label.values()) == names
    assert torch.equal(model.classifier.out.bias, torch.arange(len(names)) / 10)
    assert model.config.num_groups == 64
    spare = f"{40 - len(names)} rows of the last layer"
    assert ("left_out" in facts) == (len(names) < 40) == (spare in (tmp_path / "out" / "README.md").read_text())

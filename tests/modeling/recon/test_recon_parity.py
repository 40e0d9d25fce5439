"""ReCon's files, converted and opened, against stored runs of the released programs, tensor by tensor."""

import pytest
import torch
from torch import nn
from transformers import AutoModel

from hf_any3d import AutoModelForPointCloudClassification, AutoModelForPointCloudSegmentation
from hf_any3d.modeling.recon import ReconForPreTraining, ReconForZeroShotPointCloudClassification
from tests.modeling.act.reference_case import FOLDER, without_chance
from tests.modeling.start_case import StartCase, outputs_of, renames_of

TOLERANCE = 1e-4
CASES = sorted(path.stem for path in FOLDER.glob("start_recon_*.json"))


def of_kind(kind: str) -> list[str]:
    return [name for name in CASES if f"_{kind}" in name]


def options_of(case: StartCase) -> dict[str, int]:
    """What no tensor shows."""
    settings = {**case.arguments, **case.arguments.get("fixed", {}), **case.arguments.get("transformer_config", {})}
    return {
        "num_groups": settings["num_group"],
        "group_size": settings["group_size"],
        "num_attention_heads": settings["num_heads"],
    }


def assert_all_agree(case: StartCase, found: dict[str, torch.Tensor], *prefixes: str) -> None:
    stored = {key for key in case.expected if key.startswith(prefixes or "")}
    assert stored <= found.keys(), stored - found.keys()
    errors = {key: case.error(key, found[key]) for key in stored}
    assert {key: error for key, error in errors.items() if not error <= TOLERANCE} == {}


def renames(case, opener, folder, shapes=None, **options):
    folder.mkdir()
    numbered = opener.from_pretrained(case.convert(folder, shapes, numbered=True, **options))
    return renames_of(case.shapes if shapes is None else shapes, numbered)


@pytest.mark.parametrize("name", of_kind("pretrain"))
def test_pretraining_computes_the_stored_losses_and_gradients(name, tmp_path):
    case = StartCase(name)
    own = case.manifest["extra_state_dict_of_self_contrastive"]
    shapes = {**case.shapes, **own}
    options = options_of(case)
    groups = options["num_groups"]
    inputs = {
        "points": case.points,
        "mask": torch.zeros(len(case.points), groups, dtype=torch.bool).scatter_(
            1, torch.tensor(case.manifest["masked_indices"]), True
        ),
        "image_embeds": case.features("image_features"),
        "text_embeds": case.features("text_features"),
    }
    texts = case.manifest["texts"]
    labels = torch.tensor([texts.index(text) for text in texts])
    # The released setting, and that with a fourth loss
    model = ReconForPreTraining.from_pretrained(case.convert(tmp_path, **options))
    (tmp_path / "four").mkdir()
    four = ReconForPreTraining.from_pretrained(case.convert(tmp_path / "four", shapes, **options))
    # Before a step changes the statistics of norms
    with torch.no_grad():
        found = {"eval.all_tokens": model.recon(case.points).last_hidden_state}
    for mode in ("eval.", "train."):
        for one in (model, four):
            if mode == "train.":
                without_chance(one)
            parts = ("recon.patch_encoder", "recon.blocks.layers.0", "recon.norm", "decoder_norm")
            seen = outputs_of(one, *parts)
            with torch.set_grad_enabled(mode == "train."):
                output = one(**inputs, labels=labels if one is four else None)
            normed = seen["recon.norm"]
            stages = {
                "tokens": seen["recon.patch_encoder"],
                "block0": seen["recon.blocks.layers.0"],
                "visible": normed[:, 3:],
                **{f"{token}_token": normed[:, place] for place, token in enumerate(("cls", "image", "text"))},
                "decoded": seen["decoder_norm"],
                "predicted": output.predictions,
                "image_token_projected": output.image_predictions,
                "text_token_projected": output.text_predictions,
                "loss_mdm": output.reconstruction_loss,
                "loss_csc_img": output.image_loss,
                "loss_csc_text": output.text_loss,
            }
            stages |= {"loss": output.loss} if one is model else {"loss_smc": output.contrast_loss}
            if one is four:
                stages["loss_with_smc"] = output.loss
            found |= {mode + key: tensor for key, tensor in stages.items()}
            found["centers"] = output.centers
            if mode == "train.":
                output.loss.backward()
    assert_all_agree(case, found)
    originals = renames(case, ReconForPreTraining, tmp_path / "numbered", shapes, **options)
    released = {key: value for key, value in originals.items() if key not in own}
    assert case.differing_norms(model, released) == {}
    assert case.differing_norms(four, originals, "gradient_norms_with_smc") == {}


@pytest.mark.parametrize("name", of_kind("cls"))
def test_classifiers_compute_the_stored_logits_and_gradients(name, tmp_path):
    case = StartCase(name)
    options = options_of(case)
    labels = torch.tensor(case.manifest["labels"])
    model = AutoModelForPointCloudClassification.from_pretrained(case.convert(tmp_path, **options))
    found = {}
    for mode in ("eval.", "train."):
        if mode == "train.":
            without_chance(model)
        seen = outputs_of(model, "recon.patch_encoder", "recon.blocks.layers.0", "recon")
        output = model(case.points, labels=labels)
        stages = {
            "tokens": seen["recon.patch_encoder"],
            "block0": seen["recon.blocks.layers.0"],
            "normed": seen["recon"].last_hidden_state,
            "feature": seen["recon"].pooler_output,
            "logits": output.logits,
            "loss": output.loss,
        }
        found |= {mode + key: tensor for key, tensor in stages.items()}
    output.loss.backward()
    assert_all_agree(case, found, "eval.", "train.")
    originals = renames(case, AutoModelForPointCloudClassification, tmp_path / "numbered", **options)
    assert case.differing_norms(model, originals) == {}


def without_head(case: StartCase, extra: str | None) -> dict:
    kept = {name: shape for name, shape in case.shapes.items() if not name.startswith("cls_head_finetune.")}
    return kept if extra is None else kept | case.manifest["extra_state_dict"][extra]


@pytest.mark.parametrize("name", of_kind("cls"))
def test_other_files_of_a_classifier_s_transformer_compute_what_is_stored(name, tmp_path):
    case = StartCase(name)
    options = options_of(case)
    found = {}
    with torch.no_grad():
        linear = case.convert(tmp_path, without_head(case, "linear"), **options)
        found["linear.logits"] = AutoModelForPointCloudClassification.from_pretrained(linear)(case.points).logits
        (tmp_path / "plain").mkdir()
        plain = case.convert(tmp_path / "plain", without_head(case, None), **options)
        found["svm.feature"] = AutoModel.from_pretrained(plain)(case.points).pooler_output
        (tmp_path / "texts").mkdir()
        texts = case.convert(tmp_path / "texts", without_head(case, "zero_shot"), **options)
        # The ratio of the case, which no tensor shows
        zero_shot = ReconForZeroShotPointCloudClassification.from_pretrained(texts, text_weight=0.15)
        queries = zero_shot.recon(case.points).last_hidden_state
        found["zero_shot.feature"] = zero_shot.project(queries)
    assert_all_agree(case, found, "linear.", "svm.", "zero_shot.")


@pytest.mark.parametrize("name", of_kind("cls"))
def test_a_classifier_starts_from_pretraining(name, tmp_path):
    case = StartCase(name)
    started = StartCase(name.replace("_cls", "_pretrain"))
    start = started.convert(tmp_path, **options_of(started))
    (tmp_path / "head").mkdir()
    head = AutoModelForPointCloudClassification.from_pretrained(case.convert(tmp_path / "head", **options_of(case)))
    model = AutoModelForPointCloudClassification.from_pretrained(
        start, **{key: getattr(head.config, key) for key in ("num_labels", "head_widths")}
    )
    model.classifier.load_state_dict(head.classifier.state_dict())
    with torch.no_grad():
        found = {"started.feature": model.recon(case.points).pooler_output}
        found["started.logits"] = model(case.points).logits
    assert_all_agree(case, found, "started.")


@pytest.mark.slow
@pytest.mark.parametrize("name", of_kind("partseg"))
def test_part_segmentation_computes_what_is_stored(name, tmp_path):
    case = StartCase(name)
    model = AutoModelForPointCloudSegmentation.from_pretrained(case.convert(tmp_path, **options_of(case)))
    inputs = {"points": case.points, "category": torch.tensor(case.manifest["categories"])}
    labels = case.expected["labels"].long()
    found = {}
    for mode in ("eval.", "train."):
        if mode == "train.":
            without_chance(model)
        seen = outputs_of(model, "propagation")
        log_probabilities = model(**inputs).logits.log_softmax(dim=-1)
        loss = nn.functional.nll_loss(log_probabilities.flatten(0, 1), labels.flatten())
        found |= {f"{mode}propagated": seen["propagation"].transpose(1, 2)}
        found |= {f"{mode}log_probabilities": log_probabilities, f"{mode}loss": loss}
    loss.backward()
    assert_all_agree(case, found, "eval.", "train.")
    originals = renames(case, AutoModelForPointCloudSegmentation, tmp_path / "numbered", **options_of(case))
    assert case.differing_norms(model, originals) == {}

"""ACT checkpoints of true size, one for each stored run, from the authors' file to the stored numbers."""

import shutil
import warnings

import pytest
import torch
from typer.testing import CliRunner

from hf_any3d.cli import app
from tests.converting.act_originals import KINDS, Original
from tests.converting.test_act import OPENERS
from tests.modeling.act.autoencoder_case import AutoencoderCase
from tests.modeling.act.pretraining_case import PretrainingCase
from tests.modeling.act.reference_case import ReferenceCase, without_chance

pytestmark = pytest.mark.slow
CASES = [(case, None) for case in KINDS] + [("cls", "linear"), ("cls", "side")]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "_".join(filter(None, case)))
def converted(request, tmp_path_factory):
    """A converted checkpoint, opened: case, variant, model."""
    case, variant = request.param
    original = Original(case, small=False, variant=variant)
    directory = tmp_path_factory.mktemp(case)
    torch.save(original.content(), directory / "original.pth")
    words = ["convert", "act", directory / "original.pth", "--kind", original.kind, "--output", directory / "out"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.stderr
    yield case, variant, OPENERS[original.kind].from_pretrained(directory / "out")
    shutil.rmtree(directory)


def classified(case, model, variant):
    """What a classifier or segmentation model gives, by the names of the stored tensors."""
    inputs = {"points": case.points}
    if case.manifest.get("object_class"):
        inputs["category"] = torch.tensor(case.manifest["object_class"])
    suffix = f"_{variant}" if variant else ""
    found = {"eval.logits" + suffix: model(**inputs).logits}
    if not variant:
        found["train.logits"] = without_chance(model)(**inputs).logits
    if "eval.log_prob" in case.expected:
        return {key.replace("logits", "log_prob"): logits.log_softmax(dim=-1) for key, logits in found.items()}
    return found


def reconstructed(case, model):
    """What an autoencoder gives on the paths with noise, and in training mode on those without."""
    found = {}
    for path in ("eval.gumbel_hard", "eval.gumbel_t05", "train.hard"):
        settings = case.manifest["paths"][path]
        if path.startswith("train"):
            without_chance(model)
        output = model(case.points, settings["temperature"], 0.05, settings["hard"], case.noise(path))
        found |= {f"{path}.whole_fine": output.whole_fine, f"{path}.loss_recon": output.reconstruction_loss}
        found[f"{path}.loss_kl"] = output.kl_loss
    return found


def distilled(case, model):
    """What pretraining gives."""
    found = {"eval.loss": model(case.points, case.mask, case.noise).loss}
    found["eval.svm_feature_cls_head"] = model.probe_features(case.points)
    found["train.loss"] = without_chance(model)(case.points, case.mask, case.noise).loss
    return found


def test_opened_model_reaches_the_stored_numbers(converted):
    name, variant, model = converted
    kind, full_name = KINDS[name], f"act_{name}"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*other clouds of a batch")
        if kind == "dvae":
            case = AutoencoderCase(full_name)
            found = {key: case.stored(key, tensor) for key, tensor in reconstructed(case, model).items()}
        elif kind == "pretrain":
            case = PretrainingCase(full_name)
            found = distilled(case, model)
        else:
            case = ReferenceCase(full_name, kind)
            found = classified(case, model, variant)
    assert found
    for key, tensor in found.items():
        tolerance = 1e-5 if "loss" in key else 1e-4 if key.startswith("eval") else 1e-3
        if kind in ("cls", "partseg", "semseg"):
            case.close(key, tensor, tolerance)
        else:
            torch.testing.assert_close(tensor, case.expected[key], rtol=tolerance, atol=tolerance, msg=key)

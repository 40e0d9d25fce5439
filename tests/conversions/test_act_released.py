"""Full-size ACT checkpoints, one for each stored run, from the authors' file to the stored numbers."""

import shutil
import warnings

import pytest
import torch
from typer.testing import CliRunner

from hf_any3d.cli import app
from tests.conversions.act_originals import KINDS, Original
from tests.conversions.test_act import OPENERS
from tests.modeling.act.autoencoder_case import AutoencoderCase
from tests.modeling.act.pretraining_case import PretrainingCase
from tests.modeling.act.reference_case import ReferenceCase, without_chance
from tests.turns import ALL_PAIRS

# Programs of a kind have the same layers; tests/modeling/act compares the models of all.
FIRST = {kind: case for case, kind in reversed(KINDS.items())}
CASES = [(case, None) for case in (KINDS if ALL_PAIRS else FIRST.values())]
CASES += [("cls", "linear")]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "_".join(filter(None, case)))
def converted(request, tmp_path_factory):
    """A converted checkpoint, opened: case, variant, model."""
    case, variant = request.param
    original = Original(case, small=False, variant=variant)
    directory = tmp_path_factory.mktemp(case)
    torch.save(original.content(), directory / "original.pth")
    arguments = ["convert", directory / "original.pth", "--output", directory / "out"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.stderr
    yield case, variant, OPENERS[original.kind].from_pretrained(directory / "out")
    shutil.rmtree(directory)


def classified(case, model, variant):
    """Outputs of a classifier or segmentation model for the first cloud, by the names of the stored tensors."""
    inputs = {"points": case.points[:1]}
    if case.manifest.get("object_class"):
        inputs["category"] = torch.tensor(case.manifest["object_class"][:1])
    logits = model(**inputs).logits
    if "eval.log_prob" in case.expected:
        return {"eval.log_prob": logits.log_softmax(dim=-1)}
    return {f"eval.logits{f'_{variant}' if variant else ''}": logits}


def reconstructed(case, model):
    """Outputs of an autoencoder for the clouds with the noise of the case."""
    found = {}
    for path in ("eval.gumbel_hard", "eval.gumbel_t05"):
        settings = case.manifest["paths"][path]
        output = model(case.points, settings["temperature"], 0.05, settings["hard"], case.noise(path))
        found |= {f"{path}.fine": output.fine, f"{path}.loss_recon": output.reconstruction_loss}
        found |= {f"{path}.loss_kl": output.kl_loss}
    return found


def distilled(case, model):
    """Outputs of pretraining for the clouds with mask and noise of the case."""
    return {
        "eval.loss": model(case.points, case.mask, case.noise).loss,
        "eval.svm_feature_cls_head": model.probe_features(case.points),
        "train.loss": without_chance(model)(case.points, case.mask, case.noise).loss,
    }


@pytest.mark.slow
def test_opened_model_reaches_the_stored_numbers(converted):
    name, variant, model = converted
    kind, full_name = KINDS[name], f"act_{name}"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*other clouds of a batch")
        if kind == "dvae":
            case = AutoencoderCase(full_name)
            found = reconstructed(case, model)
        elif kind == "pretrain":
            case = PretrainingCase(full_name)
            found = distilled(case, model)
        else:
            case = ReferenceCase(full_name, kind)
            found = classified(case, model, variant)
    for key, tensor in found.items():
        expected = case.expected[key]
        if kind not in ("dvae", "pretrain"):
            expected = expected[:1]
        if (how := case.manifest["subsample"].get(key)) is not None:
            steps = [slice(None, None, int(part.rpartition(":")[2] or 1)) for part in how["slice"][1:-1].split(",")]
            tensor = tensor[tuple(steps)]
        assert tensor.shape == expected.shape
        error = (tensor - expected).abs().max() / expected.abs().max()
        assert error < (1e-5 if "loss" in key else 1e-4), f"{key}: {error:.1e}"

"""The command line, on a tiny saved model."""

import json

import pytest
from peft import LoraConfig, get_peft_model
from transformers import pipeline

import hf_any3d
from hf_any3d import GuidedAdapterConfig, PointCloudProcessor, encoder_linear_pattern, trainable_module_names
from tests.cli.conftest import FILES, LABELS, run
from tests.tiny_encoders import saved_encoder, tiny_model

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")


def build(**settings):
    return tiny_model(id2label=dict(enumerate(LABELS)), **settings)


@pytest.fixture
def model(models):
    return models("classifier")


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_predictions_are_those_of_the_pipeline(model, batch_size):
    files = [FILES / "chair.ply", FILES / "lamp.stl", FILES / "bottle.glb"]
    code, out, _ = run("predict", *files, "--model", model, "--json", "--batch-size", batch_size, "--top-k", 2)
    expected = pipeline("point-cloud-classification", model=model)([str(file) for file in files], top_k=2)
    assert code == 0
    for answer, file, predictions in zip(json.loads(out), files, expected, strict=True):
        assert answer["file"] == str(file)
        assert [p["label"] for p in answer["predictions"]] == [p["label"] for p in predictions]
        for one, other in zip(answer["predictions"], predictions, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-6)


@pytest.mark.slow
def test_votes_are_those_of_the_pipeline(model):
    file = FILES / "chair.ply"
    plain, voted = (
        [
            one["score"]
            for one in json.loads(run("predict", file, "--model", model, "--json", *words)[1])[0]["predictions"]
        ]
        for words in ((), ("--votes", 3))
    )
    expected = pipeline("point-cloud-classification", model=model)(str(file), top_k=3, votes=3)
    assert voted == pytest.approx([one["score"] for one in expected], abs=1e-6)
    assert voted != pytest.approx(plain, abs=1e-6)
    assert "--votes 2 cannot be combined with --labels" in run("predict", file, "--labels", "a,b", "--votes", 2)[2]


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
@pytest.mark.parametrize("method", ["guided_adapter", "lora", None])
def test_info_counts_what_the_model_has_without_its_weights(tmp_path, method):
    model = build()
    if method == "guided_adapter":
        model = get_peft_model(model, GuidedAdapterConfig())
    elif method == "lora":
        lora = LoraConfig(target_modules=encoder_linear_pattern(model), modules_to_save=trainable_module_names(model))
        model = get_peft_model(model, lora)
    model.save_pretrained(tmp_path)
    PointCloudProcessor(num_points=64).save_pretrained(tmp_path)
    for weights in tmp_path.glob("*.safetensors"):
        weights.unlink()
    code, out, _ = run("info", tmp_path, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["trained parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert facts["total parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["adapter"] == method
    assert facts["encoder"] == saved_encoder("bert") and facts["encoder checksum"].startswith("tensors-sha256:")
    assert facts["labels"] == LABELS and facts["points"] == 64 and facts["tokens"] == 8
    assert facts["batch-dependent"] == []


def test_info_warns_of_predictions_that_depend_on_the_batch(tmp_path):
    build(released={"attention_axis": "batch"}).save_pretrained(tmp_path)
    code, out, _ = run("info", tmp_path)
    line = next(line for line in out.splitlines() if line.startswith("batch-dependent"))
    assert code == 0 and "attention_axis='batch'" in line
    assert next(line for line in out.splitlines() if line.startswith("points ")).endswith("–")


@pytest.mark.slow
def test_files_are_processed_one_by_one_if_predictions_depend_on_the_batch(tmp_path):
    build(released={"attention_axis": "batch"}).save_pretrained(tmp_path)
    PointCloudProcessor(num_points=64).save_pretrained(tmp_path)
    files = [FILES / "chair.ply", FILES / "lamp.stl"]
    with pytest.warns(UserWarning, match="depend on the other clouds"):
        _, together, _ = run("predict", *files, "--model", tmp_path, "--json")
    alone = [run("predict", file, "--model", tmp_path, "--json")[1] for file in files]
    assert json.loads(together) == [json.loads(one)[0] for one in alone]


def test_version_is_that_of_the_package():
    assert run("--version") == (0, f"hf-any3d {hf_any3d.__version__}\n", "")

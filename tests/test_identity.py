"""Every door that resumes, caches or stores answers notices other weights, other inputs and other settings."""

import json
import os

import numpy as np
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import pipeline

from hf_any3d import GuidedAdapterConfig, PointCloudProcessor, scale
from hf_any3d.identity import active_adapters, input_stamp, model_identity, pipeline_identity, weights_state
from hf_any3d.serving.journal import Journal
from tests.cli.conftest import FILES, run
from tests.serving.conftest import client, files, pipes  # noqa: F401  fixtures
from tests.tiny_aligned import tiny_parts_by_name
from tests.tiny_encoders import tiny_model
from tests.tiny_text_towers import LABELS, tiny_zero_shot_model

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")


@pytest.fixture
def saved(tmp_path):
    """A saved classifier."""
    torch.manual_seed(0)
    model = tiny_model(id2label={0: "chair", 1: "lamp"})
    torch.nn.init.normal_(model.classifier.out.weight, std=2.0)
    get_peft_model(model, GuidedAdapterConfig()).save_pretrained(tmp_path / "model")
    PointCloudProcessor(num_points=32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_weights(folder):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("classifier.out.weight"))
    save_file(tensors | {name: -tensors[name]}, file, {"format": "pt"})


def change_json(name, **values):
    def change(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return change


CHANGES = {
    "weights": change_weights,
    "config": change_json("config.json", pooling=["cls"]),
    "processor": change_json("preprocessor_config.json", num_points=16),
    "adapter": change_json("adapter_config.json", voxel_size=0.3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_saved_model_is_another_one_when_its_answers_may_differ(saved, change):
    before = model_identity(saved)
    (saved / "README.md").write_text("a card")
    (saved / "training_args.bin").write_bytes(b"x")
    assert model_identity(saved) == before
    CHANGES[change](saved)
    assert model_identity(saved) != before


def test_a_model_of_the_hub_is_its_commit(hub, saved):
    for number in range(2):
        tiny_model().push_to_hub("me/identified", commit_message=str(number))
        model_identity("me/identified")
    first = model_identity("me/identified")
    assert first.startswith("commit:") and len(first) == len("commit:") + 40
    hub.commit("me/identified", {"note.txt": b"new"})
    assert model_identity("me/identified") != first
    with pytest.raises(OSError, match="nobody/nothing"):
        model_identity("nobody/nothing")


def test_an_open_pipeline_is_known_by_weights_settings_and_active_adapters(saved):
    pipe = pipeline("point-cloud-classification", model=str(saved))
    seen = [pipeline_identity(pipe)]
    pipe.feature_extractor.num_points = 16
    seen.append(pipeline_identity(pipe))
    with torch.no_grad():
        pipe.model.classifier.out.bias.add_(1)
    seen.append(pipeline_identity(pipe))
    assert active_adapters(pipe.model) == ["default"]
    wrapped = get_peft_model(tiny_model(), GuidedAdapterConfig())
    wrapped.add_adapter("other", GuidedAdapterConfig())
    wrapped.set_adapter("other")
    assert active_adapters(wrapped) == ["other"]
    assert len(set(seen)) == len(seen)


def test_weights_in_memory_are_others_when_written_replaced_or_cast():
    layer = torch.nn.BatchNorm1d(3)
    seen = [weights_state(layer)]
    assert weights_state(layer) == seen[0]
    with torch.no_grad():
        layer.weight.add_(1)
    seen.append(weights_state(layer))
    layer.running_mean.zero_()
    seen.append(weights_state(layer))
    layer.half()
    seen.append(weights_state(layer))
    assert len(set(seen)) == len(seen)


def test_an_input_is_known_by_its_bytes_and_a_file_by_its_buffers(tmp_path):
    assert input_stamp("<stdin>", b"1 2 3") != input_stamp("<stdin>", b"1 2 4")
    (tmp_path / "cube.gltf").write_text(json.dumps({"buffers": [{"uri": "cube.bin"}, {"uri": "data:,x"}, {}]}))
    stamps = [input_stamp(tmp_path / "cube.gltf")]
    for content in (b"first", b"second"):
        (tmp_path / "cube.bin").write_bytes(content)
        stamps.append(input_stamp(tmp_path / "cube.gltf"))
    os.utime(tmp_path / "cube.bin", ns=(1, 1))
    stamps.append(input_stamp(tmp_path / "cube.gltf"))
    assert len(set(stamps)) == len(stamps)
    (tmp_path / "bad.gltf").write_text("[1]")
    assert input_stamp(tmp_path / "bad.gltf") == input_stamp(tmp_path / "bad.gltf")


# The doors.


def test_a_batch_does_not_continue_with_other_weights(saved, tmp_path):
    words = ("batch", "predict", FILES / "chair.ply", "--model", saved, "--output", tmp_path / "t.jsonl")
    assert run(*words).code == 0
    assert "1 of them before" in run(*words).out
    before = (tmp_path / "t.jsonl").read_bytes()
    change_weights(saved)
    code, _, err = run(*words)
    assert code == 1 and "was made by other weights or files of the model" in err
    assert (tmp_path / "t.jsonl").read_bytes() == before


def test_a_batch_knows_standard_input_by_its_bytes(saved, tmp_path):
    words = ("batch", "predict", "-", "--model", saved, "--output", tmp_path / "t.jsonl")
    cloud = np.random.default_rng(0).integers(0, 9, (40, 3))
    first, second = ("\n".join(" ".join(map(str, row)) for row in points) for points in (cloud, cloud[::-1]))
    assert len(first) == len(second) and first != second
    assert run(*words, stdin=first).code == 0
    assert "of them before" in run(*words, stdin=first).out
    assert "of them before" not in run(*words, stdin=second).out


def test_rows_of_many_files_are_those_of_the_weights(saved):
    rows = scale.read_point_clouds(FILES / "chair.ply")
    settings = [step(rows, saved).settings for step in (scale.classify, scale.embed)]
    assert [step(rows, saved).settings for step in (scale.classify, scale.embed)] == settings
    change_weights(saved)
    assert all(
        step(rows, saved).settings != before
        for step, before in zip((scale.classify, scale.embed), settings, strict=True)
    )


def test_a_zero_shot_pipeline_embeds_its_labels_again_after_its_text_tower_changed():
    classify = pipeline(
        "zero-shot-point-cloud-classification",
        model=tiny_zero_shot_model(),
        feature_extractor=PointCloudProcessor(num_points=32),
    )
    before = classify.label_embeddings(tuple(LABELS))
    assert classify.label_embeddings(tuple(LABELS)) is before
    with torch.no_grad():
        for parameter in classify.model.text_tower.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    after = classify.label_embeddings(tuple(LABELS))
    assert torch.equal(after, classify.model.encode_labels(LABELS)) and not torch.allclose(after, before)
    classify.model.config.hypothesis_templates = ["no {} at all"]
    assert not torch.equal(classify.label_embeddings(tuple(LABELS)), after)


def test_parts_by_name_are_embedded_for_each_category_and_text_tower():
    segment = pipeline(
        "zero-shot-point-cloud-segmentation",
        model=tiny_parts_by_name(),
        feature_extractor=PointCloudProcessor(num_points=64),
    )
    chair, table = (segment.label_embeddings(("leg", "top"), category=name) for name in ("chair", "table"))
    assert not torch.allclose(chair, table)
    assert segment.label_embeddings(("leg", "top"), category="chair") is chair
    with torch.no_grad():
        for parameter in segment.model.text_tower.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert not torch.allclose(segment.label_embeddings(("leg", "top"), category="chair"), chair)


def test_a_journal_does_not_answer_with_what_other_weights_said(client, tmp_path):  # noqa: F811
    key = {"Idempotency-Key": "job-1"}
    service = client(journal=Journal(tmp_path / "answers.db"))
    assert service.post("/v1/classify", **files(0), headers=key).status_code == 200
    service.service.journal.close()
    weight = service.service.pipe.model.classifier.out.weight
    with torch.no_grad():
        weight.neg_()
    try:
        restarted = client(journal=Journal(tmp_path / "answers.db"))
        assert restarted.post("/v1/classify", **files(0), headers=key).status_code == 422
    finally:
        with torch.no_grad():
            weight.neg_()

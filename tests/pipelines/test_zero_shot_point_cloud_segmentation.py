"""Parts by name: in the pipeline, on the command line and in an evaluation, with a text tower or vectors of words."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_any3d import AutoModelForZeroShotPointCloudSegmentation, PointCloudProcessor, TextBank
from hf_any3d.evaluation.part_names import named_part_scores
from tests.cli.conftest import run
from tests.errors import raises
from tests.tiny_aligned import tiny_parts_by_name

LABELS = ["seat", "leg", "back"]
CHAIR = "tests/files/chair.ply"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with a tiny encoder, aligned with a tiny CLIP, and its processor."""
    directory = tmp_path_factory.mktemp("parts")
    tiny_parts_by_name().save_pretrained(directory)
    PointCloudProcessor(num_points=64).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def segment(saved):
    return pipeline("zero-shot-point-cloud-segmentation", model=saved)


def test_every_point_gets_the_part_of_its_patch(segment, saved, tmp_path):
    cloud = np.random.default_rng(0).normal(size=(64, 3))
    answer = segment(cloud, candidate_labels=LABELS, output_dir=tmp_path)
    model = AutoModelForZeroShotPointCloudSegmentation.from_pretrained(saved)
    inputs = PointCloudProcessor.from_pretrained(saved)(answer["points"])
    with torch.no_grad():
        logits = model(**inputs, text_embeds=model.encode_labels(LABELS)).logits[0]
    np.testing.assert_array_equal(np.sort(answer["labels"]), np.sort(logits.argmax(dim=-1).numpy()))
    assert {part["label"] for part in answer["segments"]} == {LABELS[number] for number in np.unique(answer["labels"])}
    assert sum(part["mask"].sum() for part in answer["segments"]) == 64
    page = (tmp_path / "cloud-0.html").read_text()
    assert (tmp_path / "cloud-0.ply").is_file() and all(label in page for label in LABELS)


def test_texts_are_those_of_the_templates(segment):
    tower = segment.model.text_tower
    own = tower.embed(["leg", "a leg", "leg part"]).mean(dim=0)
    torch.testing.assert_close(segment.label_embeddings(("Leg!",))[0], torch.nn.functional.normalize(own, dim=0))
    named = tower.embed(["a leg of a chair", "the leg of a chair", "leg of chair", "a leg part of a chair"]).mean(
        dim=0
    )
    found = segment.label_embeddings(("leg",), category="Chair")[0]
    torch.testing.assert_close(found, torch.nn.functional.normalize(named, dim=0))
    torch.testing.assert_close(segment.label_embeddings(("leg",), "chair", "part_plus_cat")[0], found)


def test_vectors_computed_elsewhere_need_no_text_tower(segment, saved, tmp_path):
    expected = segment(CHAIR, candidate_labels=LABELS)["labels"]
    vectors = segment.model.encode_labels([*LABELS, "arm"])
    TextBank(dict(zip([*LABELS, "arm"], vectors, strict=True))).save(tmp_path / "words.safetensors")
    # A model whose text tower cannot be opened.
    model = shutil.copytree(saved, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "parts": None, "aligned_with": "OpenCLIP ViT-B-16"}))
    segment = pipeline("zero-shot-point-cloud-segmentation", model=str(model))
    named = dict(zip(LABELS, vectors, strict=False))
    for features in (tmp_path / "words.safetensors", named, TextBank(named), vectors[:3], vectors[:3].numpy()):
        np.testing.assert_array_equal(
            segment(CHAIR, candidate_labels=LABELS, text_features=features)["labels"], expected
        )
    with raises(ValueError, naming="OpenCLIP"):
        segment(CHAIR, candidate_labels=LABELS)
    with raises(ValueError, naming="no vector of 'wheel'"):
        segment(CHAIR, candidate_labels=["wheel"], text_features=tmp_path / "words.safetensors")
    with pytest.raises(ValueError, match=r"shape \(3, \d+\); expected \(2, width\)"):
        segment(CHAIR, candidate_labels=LABELS[:2], text_features=vectors[:3])


def test_wrong_arguments_are_refused(segment):
    for arguments, message in (
        ({}, "candidate_labels is missing"),
        ({"candidate_labels": "Seat, seat"}, "'Seat', 'seat'"),
        ({"candidate_labels": LABELS, "templates": "part_plus_cat"}, "category is missing, which template"),
        ({"candidate_labels": LABELS, "text_features": torch.ones(3, 4), "category": "chair"}, "expected neither"),
        ({"candidate_labels": LABELS, "patch_to_point": "mean"}, "patch_to_point='mean'"),
        ({"candidate_labels": LABELS, "none_label": False}, "none_label=False; expected None, as this model has no"),
    ):
        with pytest.raises(ValueError, match=message):
            segment(CHAIR, **arguments)
    with raises(TypeError, naming="top_k"):
        segment(CHAIR, candidate_labels=LABELS, top_k=2)


def test_the_evaluation_asks_for_the_parts_of_each_category(segment):
    generator = np.random.default_rng(0)
    rows = []
    for category, count in (("Chair", 3), ("Mug", 2)):
        cloud = generator.normal(size=(64, 3))
        labels = generator.integers(0, count, 64)
        rows.append({"points": cloud, "labels": labels, "category": category})
    names = {"Chair": ["back", "seat", "leg"], "Mug": ["handle", "cup"]}
    found = named_part_scores(segment, rows, names, templates="ensemble")
    ious, right = [], 0
    for row in rows:
        answer = segment(
            row["points"], candidate_labels=names[row["category"]], templates="ensemble", category=row["category"]
        )["labels"]
        right += (answer == row["labels"]).sum()
        parts = range(len(names[row["category"]]))
        shares = [
            ((answer == n) & (row["labels"] == n)).sum() / ((answer == n) | (row["labels"] == n)).sum() for n in parts
        ]
        ious.append(np.mean(shares))
    assert found["instance_miou"] == pytest.approx(np.mean(ious)) and found["accuracy"] == right / 128
    assert found["category_ious"] == {"Chair": pytest.approx(ious[0]), "Mug": pytest.approx(ious[1])}
    with raises(KeyError, naming="Chair"):
        named_part_scores(segment, rows, {"Mug": ["handle", "cup"]})


@pytest.mark.slow
@pytest.mark.usefixtures("libraries_as_they_were")
def test_parts_are_named_on_the_command_line(saved, tmp_path):
    page = tmp_path / "chair.html"
    code, out, _ = run("segment", CHAIR, "--model", saved, "--labels", "seat, leg,back", "--json", "--output", page)
    (row,) = json.loads(out)
    answer = pipeline("zero-shot-point-cloud-segmentation", model=saved)(CHAIR, candidate_labels=LABELS)
    counts = {part["label"]: part["points"] for part in row["segments"]}
    assert code == 0 and counts == {part["label"]: int(part["mask"].sum()) for part in answer["segments"]}
    assert all(label in page.read_text() for label in counts)
    code, _, err = run("segment", CHAIR, "--model", saved)
    assert code == 1 and "needs --labels" in err and err.count("\n") == 1

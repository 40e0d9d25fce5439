"""Single objects are turned upright: as somebody says, as the file states, or as they look; the answer says which."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import pipeline
from typer.testing import CliRunner

from hf_any3d import example_file, load_point_dataset
from hf_any3d.cli import app
from hf_any3d.data.files import PointCloudData, read_point_cloud, write_point_cloud
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.modeling.act.up_direction import quarter_turns, up_probabilities
from hf_any3d.modeling.layers.boxes import UP_AXES
from hf_any3d.pipelines import default_model
from hf_any3d.serving.tasks import routes_of
from hf_any3d.tasks.poses import ANY
from tests.errors import raises
from tests.visualization.test_viewer import content


@pytest.fixture(scope="module")
def classify():
    return pipeline("point-cloud-classification", model=default_model())


def sampled(name: str) -> np.ndarray:
    """Points `(1024, 3)` of an example, y up."""
    mesh = read_point_cloud(example_file(name))
    return mesh.sample_surface(1024, np.random.default_rng(0)).points


def with_up(points: np.ndarray, up_axis: str) -> np.ndarray:
    """Turn points with y up as a file with another direction up has them."""
    return points @ quarter_turns()[UP_AXES.index(up_axis), 1].numpy()


def test_quarter_turns_are_all_rotations_by_quarter_turns_and_begin_with_the_usual_one():
    points = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for up_axis in "xyz":
        turns = quarter_turns(up_axis)
        torch.testing.assert_close(torch.linalg.det(turns), torch.ones(6, 4))
        assert len({tuple(turn.flatten().tolist()) for turn in turns.flatten(0, 1)}) == 24
        for direction, (turn, *_) in zip(UP_AXES, turns, strict=True):
            usual = turn_up_axis(points, direction, up_axis)
            np.testing.assert_allclose(points @ turn.numpy().T, usual, atol=1e-6)
            up = np.zeros((1, 3), dtype=np.float32)
            up[0, "xyz".index(direction[-1])] = -1 if direction.startswith("-") else 1
            assert turn_up_axis(up, direction, up_axis)[0, "xyz".index(up_axis)] == 1


@pytest.mark.parametrize("name", ["chair.ply", "lamp.ply"])
def test_an_object_gets_one_answer_whichever_way_its_file_is_turned(classify, name):
    points = sampled(name)
    answers = {up: classify(with_up(points, up), top_k=None) for up in UP_AXES}
    for up, answer in answers.items():
        assert [one["label"] for one in answer] == [one["label"] for one in answers["y"]]
        np.testing.assert_allclose([one["score"] for one in answer], [one["score"] for one in answers["y"]], atol=1e-4)
        assert (answer[0]["up_axis"], answer[0]["up_source"]) == (up, answers["y"][0]["up_source"])
    assert answers["y"][0]["label"] == name.partition(".")[0]


def test_who_asks_wins_over_the_file_and_the_file_over_the_shape(classify):
    cloud = PointCloudData(sampled("chair.ply").astype(np.float32))
    for stated, given, axis, source in (
        (None, None, "y", "found"),
        ("z", None, "z", "file"),
        ("z", "-x", "-x", "given"),
        (None, "y", "y", "given"),
    ):
        best = classify(replace(cloud, up_axis=stated), up_axis=given)[0]
        assert (best["up_axis"], best["up_source"]) == (axis, source)
    # What is stated is what is seen: a wrong statement has the answer of the cloud that is turned so.
    lying = replace(cloud, points=turn_up_axis(cloud.points, "z", "y"))
    said = classify(replace(cloud, up_axis="z"), top_k=None)
    expected = classify(lying, top_k=None, up_axis="y")
    assert [one["label"] for one in said] == [one["label"] for one in expected]
    with raises(ValueError, naming="up_axis is 'up'; expected one of"):
        classify(cloud, up_axis="up")


@pytest.mark.parametrize("given", [None, "y", "-x"])
@pytest.mark.parametrize("stated", [None, "z"])
def test_commands_and_the_service_take_the_direction_of_the_pipeline(classify, given, stated, tmp_path):
    cloud = PointCloudData(sampled("chair.ply").astype(np.float32), up_axis=stated)
    write_point_cloud(tmp_path / "chair.ply", cloud)
    expected = classify(tmp_path / "chair.ply", up_axis=given, top_k=3)
    words = [] if given is None else ["--up-axis", given]
    ran = CliRunner().invoke(app, ["predict", str(tmp_path / "chair.ply"), "--json", *words])
    (row,) = json.loads(ran.stdout)
    for one, other in zip(row["predictions"], expected, strict=True):
        assert one | {"score": 0, "unknown": 0} == other | {"score": 0, "unknown": 0}
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    (route,) = [route for route in routes_of("point-cloud-classification", classify) if route.path == "/v1/classify"]
    settings = route.settings(top_k=3, up_axis=given)
    (answer,) = route.run(settings, [read_point_cloud(tmp_path / "chair.ply")], 1)
    assert (answer["labels"][0]["up_axis"], answer["labels"][0]["up_source"]) == (
        expected[0]["up_axis"],
        expected[0]["up_source"],
    )


def test_of_what_is_equal_in_several_directions_up_could_not_be_told(classify):
    generator = np.random.default_rng(0)
    ball = generator.normal(size=(1024, 3)).astype(np.float32)
    plate = ball * np.float32([1, 0.001, 1])
    answers = classify([ball / np.linalg.norm(ball, axis=1, keepdims=True), plate])
    assert [answer[0]["up_source"] for answer in answers] == ["unsure", "unsure"]


def test_a_model_that_expects_any_pose_or_none_is_left_alone(classify, monkeypatch):
    points = with_up(sampled("chair.ply"), "z")
    monkeypatch.setattr(classify.model.config, "averaged_headings", 1)
    for pose in (None, ANY):
        monkeypatch.setattr(classify.model.config, "expected_pose", pose)
        (best,) = classify(points, unknown=False)
        assert "up_axis" not in best
        with torch.no_grad():
            logits = classify.model(**classify.feature_extractor(points)).logits
        assert best["score"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-6)
    monkeypatch.setattr(classify.model.config, "expected_pose", "uprigth")
    with raises(ValueError, naming="expected_pose is 'uprigth'; expected one of None, upright, any"):
        classify(points)


def test_features_are_those_of_the_upright_cloud():
    extract = pipeline("point-cloud-feature-extraction", model=default_model())
    points = sampled("chair.ply")
    found = extract(points)
    assert (found["up_axis"], found["up_source"]) == ("y", "found")
    turned = extract(turn_up_axis(points, "y", "z"))
    assert turned["up_axis"] == "z"
    np.testing.assert_allclose(turned["pooled"], found["pooled"], atol=1e-4)


def test_directions_of_embedded_test_shapes_are_found_as_often_as_stored():
    rows = load_point_dataset("shapes")["test"].with_format("torch")
    chosen = range(0, len(rows), 12)
    shares = up_probabilities(torch.stack([rows[number]["points"] for number in chosen]))
    assert (shares.argmax(dim=-1) == UP_AXES.index("y")).float().mean() > 0.35  # by chance 0.17
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(len(shares)))


@pytest.mark.parametrize("direction", UP_AXES)
def test_an_object_is_shown_as_it_looks_upright(direction, tmp_path):
    points = sampled("chair.ply")
    file = tmp_path / "chair.ply"
    write_point_cloud(file, PointCloudData(with_up(points, direction)))
    for words, expected in ([[], direction[-1]], [["--up-axis", "x"], "x"]):
        answer = CliRunner().invoke(app, ["show", str(file), "--output", str(tmp_path / "show.html"), *words])
        assert answer.exit_code == 0, answer.output
        page, _ = content((tmp_path / "show.html").read_text(encoding="utf-8"))
        panel = page["panels"][0]
        assert panel["up"] == expected
        assert (f"up: {direction}, as it looks" in panel["note"]) == (not words and direction != "y")

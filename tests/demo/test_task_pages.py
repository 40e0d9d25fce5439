"""The demo of models that answer at once: their answers, their limits, and their pages in a browser."""

import threading

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_any3d import PointCloudProcessor
from hf_any3d.data.example_shapes import ExampleShapes
from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.demo.page import error_or_note, view_frame
from hf_any3d.demo.task_pages import TaskAnswers, TaskPage, Visit, bars
from hf_any3d.modeling.any2point import Any2PointModel
from hf_any3d.modeling.detr3d import Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.records import FEATURES
from tests.common.models import case_of
from tests.errors import raises
from tests.tiny_aligned import tiny_parts_by_name
from tests.tiny_autoencoders import tiny_autoencoder
from tests.tiny_encoders import tiny_model, tiny_part_model
from tests.tiny_text_towers import tiny_zero_shot_model
from tests.visualization.test_pages_in_browser import SCROLLS, emulated

POINTS = 64
PARTS = ["table top", "table legs", "lamp foot", "<b>pole", "lamp shade"]
MODELS = {
    "point-cloud-classification": lambda: tiny_model(id2label={0: "chair", 1: "<i>lamp", 2: "sofa"}),
    "zero-shot-point-cloud-classification": tiny_zero_shot_model,
    "zero-shot-point-cloud-segmentation": tiny_parts_by_name,
    "point-cloud-segmentation": lambda: tiny_part_model(id2label=dict(enumerate(PARTS))),
    "point-cloud-reconstruction": lambda: tiny_autoencoder(None),
    "point-cloud-object-detection": lambda: case_of(Detr3DForPointCloudObjectDetection).tiny(),
    FEATURES: lambda: tiny_model(model_class=Any2PointModel),
}


@pytest.fixture(scope="module")
def answers():
    """Return the answers of a tiny model of a task."""
    made = {}

    def of(task):
        if task not in made:
            boxes = {"center": False, "scale": None, "up_axis": "z"} if "detection" in task else {}
            processor = PointCloudProcessor(num_points=POINTS, **boxes)
            pipe = pipeline(task, model=MODELS[task](), feature_extractor=processor)
            made[task] = TaskAnswers(task, pipe, ExampleShapes())
        return made[task]

    return of


def cloud(count=200, **fields):
    return PointCloudData(np.random.default_rng(0).normal(size=(count, 3)), **fields)


def test_classes_are_the_pipelines(answers):
    one = answers("point-cloud-classification")
    found = one.ask(cloud())
    assert found.rows == [(best["label"], best["score"]) for best in one.pipe(cloud(), top_k=8)]
    assert found.note == "200 points" and len(found.clouds[0].points) == 200


def test_boxes_are_drawn_around_objects(answers):
    one = answers("point-cloud-object-detection")
    found = one.ask(cloud())
    boxes = one.pipe(cloud())
    assert found.rows == [(box["label"], box["score"]) for box in boxes] and len(boxes) >= 1
    (view,) = found.clouds
    assert len(view.points) == 200 and found.settings["threshold"] == 0.5
    assert [(box.label, box.score) for box in view.boxes[: len(boxes)]] == found.rows
    assert len(view.boxes) == len(one.pipe(cloud(), threshold=0.05))
    np.testing.assert_allclose(view.boxes[0].corners, boxes[0]["box"]["corners"], atol=1e-5)


def test_words_are_compared_and_limited(answers):
    one = answers("zero-shot-point-cloud-classification")
    found = one.ask(cloud(), labels="chair, lamp,, chair , a car")
    assert {label for label, _ in found.rows} == {"chair", "lamp", "a car"}
    assert sum(share for _, share in found.rows) == pytest.approx(1)
    with raises(ValueError, naming="0 words"):
        one.ask(cloud(), labels=" , ")
    with pytest.raises(ValueError, match="51 words; expected some, separated by commas, at most 50"):
        one.ask(cloud(), labels=",".join(map(str, range(51))))


def test_parts_of_the_chosen_kind_are_colored(answers):
    one = answers("point-cloud-segmentation")
    with pytest.raises(ValueError, match="category is missing"):
        one.ask(cloud())
    found = one.ask(cloud(colors=np.full((200, 3), 0.5)), category=one.categories[0])
    (view,) = found.clouds
    assert sum(share for _, share in found.rows) == pytest.approx(1) and view.colors is not None
    assert {PARTS[label] for label in view.labels} == {label for label, _ in found.rows} <= set(found.colors)


def test_parts_are_found_by_the_words(answers):
    one = answers("zero-shot-point-cloud-segmentation")
    found = one.ask(cloud(), labels="seat, leg")
    (view,) = found.clouds
    assert list(found.colors) == ["seat", "leg"] and len(view.labels) == 200
    assert {["seat", "leg"][label] for label in view.labels} == {label for label, _ in found.rows}
    with raises(ValueError, naming="0 words"):
        one.ask(cloud())


def test_reconstructions_are_shown_next_to_their_input(answers):
    found = answers("point-cloud-reconstruction").ask(cloud())
    assert [view.title for view in found.clouds] == ["input", "reconstruction"] and "Chamfer distance" in found.note


def test_similar_examples_are_found_by_their_features(answers):
    one = answers(FEATURES)
    name = one.examples.names[3]
    found = one.ask(one.examples.get(name))
    assert found.rows[0] == (name, pytest.approx(1, abs=1e-4)) and len(found.rows) == 8


def test_large_clouds_are_thinned_out_and_slow_answers_end(answers):
    one = answers("point-cloud-classification")
    assert one.ask(cloud(100_010)).note == "100,000 of 100,010 points, drawn at random"
    slow = TaskAnswers(one.task.name, one.pipe, one.examples, seconds=-1.0)
    with pytest.raises(ValueError, match="the answer takes more than -1 seconds; try a smaller cloud"):
        slow.ask(cloud())
    assert one.ask(cloud()).rows, "the model still answers"


def test_visitors_have_shapes_of_their_own_and_broken_files_change_nothing(tmp_path):
    broken = tmp_path / "broken.ply"
    broken.write_text("nothing")
    one, two = Visit(), Visit()
    one.open(cloud(30))
    two.open(cloud(40))
    with raises(ValueError, naming="broken.ply") as caught:
        one.open(broken)
    assert str(tmp_path) not in str(caught.value)
    assert len(one.cloud) == 30 and len(two.cloud) == 40


def test_labels_and_pages_are_escaped():
    assert "&lt;i&gt;lamp" in bars("Classes", [("<i>lamp", 0.5)]) and bars("Classes", []) == ""
    assert "&lt;b&gt;" in error_or_note("<b>", is_error=True)
    assert "sandbox" in view_frame("<p>") and "<p>" not in view_frame("<p>")


@pytest.mark.slow
def test_progress_is_shown_where_the_visitor_looks(answers):
    page = TaskPage("me/model", ExampleShapes(), answers("point-cloud-classification")).build()
    for event in page.config["dependencies"]:
        # On the picture or the answer alone; not on every output, among them hidden ones.
        shown = [page.blocks[number].elem_id for number in event["show_progress_on"] or []]
        assert event["show_progress"] == "hidden" or shown in (["view"], ["answer"]), event


def test_several_visitors_get_their_own_answers(answers):
    one = answers("point-cloud-classification")
    shapes = [PointCloudData(np.random.default_rng(n).normal(size=(100 + n, 3))) for n in range(4)]
    seen = {}

    def visit(number):
        seen[number] = one.ask(shapes[number]).note

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [f"{100 + n} points" in seen[n] for n in range(4)] == [True] * 4


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("task", ["point-cloud-classification", "point-cloud-segmentation"])
def test_pages_answer_on_desktops_and_phones(task, answers, browser, tmp_path):
    mine = tmp_path / "mine.ply"
    write_point_cloud(mine, PointCloudData(np.random.default_rng(0).normal(size=(77, 3))))
    torch.manual_seed(0)
    page = TaskPage("me/model", ExampleShapes(), answers(task)).open()
    try:
        for phone, dark in ((False, False), (True, True)):
            with emulated(browser, phone, dark):
                browser.open(page.local_url)
                browser.wait(lambda: browser.all("#view iframe") and browser.painted("#view iframe") > 40)
                assert not browser.driver.execute_script(SCROLLS)
                browser.driver.find_element("css selector", "input[type=file]").send_keys(str(mine))
                browser.wait(lambda: "77 points" in browser.text("#note"))
                assert browser.wait(lambda: browser.texts("#answer li"))
                assert browser.errors() == []
    finally:
        page.close()

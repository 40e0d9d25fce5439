"""Pipelines of models that write layouts: boxes of a detector, texts, and both as they are written."""

import json
import warnings

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, pipeline

from hf_any3d.data import load_point_dataset
from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.modeling.spatiallm import Box, Door, Layout, Wall
from hf_any3d.pipelines import LayoutDetectionPipeline, LayoutTextPipeline
from tests.cli.conftest import run
from tests.errors import raises
from tests.tiny_spatiallm import fitting_spatiallm, tiny_processor

DETECT, WRITE = "point-cloud-object-detection", "point-cloud-text-to-text"
ROOM = Layout(
    (Wall(0, 0.5, 0.25, 0, 4.5, 0.25, 0, 2.5, 0.125), Wall(1, 0.5, 0.25, 0, 0.5, 3.0, 0, 2.5, 0.125)),
    (Door(0, 1, 0.5, 1.5, 1.0, 0.9, 2.0),),
    (),
    (Box(0, "chair", 1.0, 1.0, 0.5, 0.5, 0.5, 0.4, 1.0), Box(1, "bed", 2.5, 2.0, 0.25, 0.0, 2.0, 1.5, 0.5)),
)
CORNER = np.array([1.0, -2.0, 0.5])


def scan(seed: int = 0, count: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    places = rng.random((count, 3)) * (4.0, 3.0, 2.0)
    places[0] = 0
    return np.concatenate([places + CORNER, rng.random((count, 3))], axis=1).astype(np.float32)


class Dictated(LogitsProcessor):
    """Lets a model write a text, and notes its prompt."""

    def __init__(self, tokenizer, text: str):
        self.tokens = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        self.tokenizer, self.length, self.steps = tokenizer, None, 0

    @property
    def prompt(self) -> str:
        return self.tokenizer.decode(self.ids, skip_special_tokens=True)

    def __call__(self, input_ids, scores):
        if self.length is None:
            self.length, self.ids = input_ids.shape[1], input_ids[0]
        self.steps += 1
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.tokens[min(input_ids.shape[1] - self.length, len(self.tokens) - 1)]] = 0
        return forced


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("spatiallm")
    processor = tiny_processor(num_bins=1280, stride=2, clean=False)
    # A line is a token, so that answers are short.
    processor.tokenizer.add_tokens(ROOM.quantized(1280).write().split("\n"))
    model = fitting_spatiallm(processor)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def detect(folder):
    return pipeline(DETECT, model=folder)


@pytest.fixture(scope="module")
def write(folder):
    return pipeline(WRITE, model=folder)


def dictated(pipe, text: str = ROOM.quantized(1280).write()):
    return Dictated(pipe.processor.tokenizer, text)


def assert_room(found: list[dict], shift: np.ndarray = CORNER) -> None:
    """Check that answers are those of `ROOM` in the frame of a scan with this lowest corner, but for half a bin."""
    boxes, labels = ROOM.translated(shift).as_boxes()
    assert [one["label"] for one in found] == labels
    for one, box in zip(found, boxes, strict=True):
        assert one["score"] is None and set(one["box"]) == {"center", "size", "heading", "corners"}
        made = [*one["box"]["center"], *one["box"]["size"], one["box"]["heading"]]
        np.testing.assert_allclose(made, box, atol=0.02)
        np.testing.assert_allclose(np.mean(one["box"]["corners"], axis=0), one["box"]["center"], atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*cut off before its end")
@pytest.mark.parametrize("settings", [{"stop_sequence": "bbox_0="}, {"generate_kwargs": {"stop_strings": "bbox_0="}}])
def test_answers_end_as_in_the_pipelines_of_transformers(write, settings):
    found = write(scan(), logits_processor=[dictated(write)], **settings)[0]["layout"]
    assert len(found["walls"]) == 2 and len(found["boxes"]) < 2


def test_boxes_are_those_of_the_layout_in_the_frame_of_the_scan(detect):
    assert type(detect) is LayoutDetectionPipeline
    words = dictated(detect)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_room(detect(scan(), logits_processor=[words]))
    assert "Detect boxes." in words.prompt


@pytest.mark.parametrize("up_axis", ("x", "y"))
def test_scans_with_another_up_axis(detect, up_axis):
    turned = scan()
    turned[:, :3] = turn_up_axis(turned[:, :3], "z", up_axis)
    found = detect(turned, up_axis=up_axis, logits_processor=[dictated(detect)])
    expected = detect(scan(), logits_processor=[dictated(detect)])
    for one, other in zip(found, expected, strict=True):
        corners = turn_up_axis(np.array(other["box"]["corners"]), "z", up_axis)
        np.testing.assert_allclose(one["box"]["corners"], corners, atol=1e-4)
        assert one["box"]["size"] == pytest.approx(other["box"]["size"])


def test_the_text_is_the_layout_in_meters(write):
    assert type(write) is LayoutTextPipeline
    words = dictated(write)
    (answer,) = write(scan(), logits_processor=[words])
    assert "Detect walls, doors, windows, boxes." in words.prompt
    layout = Layout.parse(answer["generated_text"], strict=True)
    assert answer["layout"] == layout.to_dict() and answer["dropped"] == []
    assert layout.boxes[0].label == "chair" and layout.walls[1].by == pytest.approx(3.0 + CORNER[1], abs=0.03)
    json.dumps(answer)


@pytest.mark.parametrize(
    ("given", "instruction"),
    [
        ({"task": "layout"}, "Detect walls, doors, windows."),
        ({"task": "objects"}, "Detect boxes."),
        ({"candidate_labels": ["chair", "coffee_table"], "task": "objects"}, "Detect chair, coffee_table."),
        ({"candidate_labels": "chair, bed", "task": "all"}, "Detect walls, doors, windows, chair, bed."),
    ],
)
def test_tasks_and_labels_are_in_the_prompt(detect, write, given, instruction):
    for pipe in (detect, write):
        words = dictated(pipe)
        pipe(scan(), logits_processor=[words], **given)
        assert f"{instruction}\n" in words.prompt


def test_messages_and_instructions(write):
    content = [{"type": "point_cloud", "points": scan()}, {"type": "text", "text": "Detect boxes."}]
    words = dictated(write)
    (answer,) = write([{"role": "user", "content": content}], logits_processor=[words])
    assert "Detect boxes." in words.prompt and len(answer["layout"]["walls"]) == 2
    write({"points": scan(), "text": "layout"}, logits_processor=[words := dictated(write)])
    assert "Detect walls, doors, windows.\n" in words.prompt
    write(scan(), text="Detect boxes", logits_processor=[words := dictated(write)])
    assert "Detect boxes." in words.prompt
    with raises(ValueError, naming="text='What is this?':"):
        write(scan(), text="What is this?")
    with pytest.raises(ValueError, match="2 messages with 1 scans; expected one message with one scan"):
        write([{"role": "user", "content": content}, {"role": "assistant", "content": "A chair."}])


@pytest.mark.slow
def test_boxes_come_as_they_are_written(detect, write):
    words = dictated(detect)
    stream = detect.stream(scan(), logits_processor=[words])
    first = next(stream)
    assert first["label"] == "wall" and words.steps < len(words.tokens)
    assert_room([first, *stream])
    (answer,) = write(scan(), logits_processor=[dictated(write)])
    lines = list(write.stream(scan(), logits_processor=[dictated(write)]))
    assert lines == answer["generated_text"].split("\n")
    # Closing the stream stops the model.
    words = dictated(detect, "\n".join([ROOM.quantized(1280).write()] * 30))
    stream = detect.stream(scan(), logits_processor=[words])
    next(stream)
    stream.close()
    assert words.steps < len(words.tokens) / 2
    with raises(ValueError, naming="at least 3"):
        list(detect.stream(scan()[:2]))


@pytest.mark.slow
def test_lost_lines_and_cut_answers_are_told(detect, write):
    text = "wall_0=Wall(1,2,3,4,5,6,7,8)\ndoor_0=Door(wall_9,1,2,3,4,5)\nHello\nbbox_0=Bbox(chair,1,2,3,4,5,6"
    with pytest.warns(UserWarning, match="has 3 lines that are no walls.*'door_0=Door.*wall_9 is in no earlier line"):
        (answer,) = write(scan(), logits_processor=[dictated(write, text)])
    assert [line["number"] for line in answer["dropped"]] == [2, 3, 4] and len(answer["layout"]["walls"]) == 1
    with pytest.warns(UserWarning, match="Hello.* was left out"):
        assert len(list(detect.stream(scan(), logits_processor=[dictated(detect, text)]))) == 1
    with pytest.warns(UserWarning, match="the answer was cut off before its end; raise max_new_tokens"):
        detect(scan(), logits_processor=[dictated(detect)], max_new_tokens=5)
    # Marks of the training around an answer are no part of it.
    marked = f"<|layout_s|>{ROOM.quantized(1280).write()}<|layout_e|>"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_room(detect(scan(), logits_processor=[dictated(detect, marked)]))
        assert_room(list(detect.stream(scan(), logits_processor=[dictated(detect, marked)])))


@pytest.mark.parametrize(
    ("pipe", "settings", "error", "words"),
    [
        ("detect", {"candidate_labels": ["unicorn"]}, ValueError, "candidate_labels has 'unicorn'"),
        ("write", {"candidate_labels": "sofa,tree"}, ValueError, "candidate_labels has 'tree'"),
        ("detect", {"candidate_labels": ["bed"], "task": "layout"}, ValueError, "candidate_labels with task='layout'"),
        ("detect", {"candidate_labels": []}, ValueError, "candidate_labels is"),
        ("detect", {"task": "rooms"}, ValueError, "'rooms'"),
        ("detect", {"threshold": 0.3}, ValueError, "threshold=0.3"),
        ("detect", {"top_k": 5}, ValueError, "top_k=5"),
        ("detect", {"num_return_sequences": 2}, ValueError, "num_return_sequences=2"),
        ("detect", {"up_axis": "w"}, ValueError, "'w'"),
        ("detect", {"theshold": 1}, TypeError, "theshold"),
        ("write", {"chat_template": "demo"}, TypeError, "chat_template"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(request, pipe, settings, error, words):
    with raises(error, naming=words):
        request.getfixturevalue(pipe)(scan(), **settings)


def test_settings_of_other_detectors_may_have_their_defaults(detect):
    given = {"threshold": 0.5, "nms": "turned", "nms_iou": 0.25, "top_k": None}
    assert_room(detect(scan(), logits_processor=[dictated(detect)], up_axis=None, **given))


def test_a_model_without_its_processor_is_one_error(folder, tmp_path):
    fitting_spatiallm(tiny_processor(num_bins=1280, stride=2)).save_pretrained(tmp_path)
    for task in (DETECT, WRITE):
        with pytest.raises((OSError, ValueError), match="processor|tokenizer"):
            pipeline(task, model=str(tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command_finds_boxes(folder, tmp_path, monkeypatch, libraries_as_they_were):
    own = scan()
    write_point_cloud(tmp_path / "room.ply", PointCloudData(own[:, :3], colors=own[:, 3:]))
    prompts = []

    def answer_texts(self, made):
        return [ROOM.quantized(1280).write()] * len(made)

    def instruction(self, task="all", classes=()):
        prompts.append((task, tuple(classes)))
        return "Detect boxes."

    kind = "hf_any3d.processing.rooms.SpatialLMProcessor"
    monkeypatch.setattr(f"{kind}.answer_texts", answer_texts)
    monkeypatch.setattr(f"{kind}.instruction", instruction)
    monkeypatch.setattr("hf_any3d.pipelines.LayoutDetectionPipeline._default_generation_config.max_new_tokens", 3)
    words = ("detect", tmp_path / "room.ply", "--model", folder, "--device", "cpu")
    code, out, err = run(*words, "--task", "all", "--labels", "chair,bed")
    assert code == 0, err
    assert "5 boxes: wall at (3.5" in out and "chair at (2.0" in out and "%" not in out
    assert prompts == [("all", ("chair", "bed"))]
    code, out, _ = run(*words, "--json")
    assert_room(json.loads(out)[0]["boxes"])
    code, out, _ = run(*words, "--output", tmp_path / "room.html")
    assert code == 0 and (tmp_path / "room.html").stat().st_size > 1000
    code, _, err = run(*words, "--threshold", "0.3")
    assert code == 1 and "threshold=0.3" in err and "without scores" in err
    for options in (["--no-align"], ["--align", "--grammar"], ["--align-parts", "turn,unit", "--no-grammar"]):
        code, out, err = run(*words, "--json", *options)
        assert code == 0 and len(json.loads(out)[0]["boxes"]) == 5, err
    code, _, err = run(*words, "--align-parts", "tilt")
    assert code == 1 and "--align-parts=['tilt']; expected" in err
    table = tmp_path / "boxes.csv"
    code, _, err = run(*words, "--output", table, "--resume", "--task", "layout", "--no-align", "--grammar")
    assert code == 0 and len(table.read_text().splitlines()) == 6, err
    code, _, err = run(*words, "--labels", "unicorn")
    assert code == 1 and "candidate_labels has 'unicorn'" in err


@pytest.mark.slow
def test_a_tilted_scan_is_answered_in_its_frame(detect, write, caplog):
    rows = load_point_dataset("rooms_with_layouts", train_rooms=0, validation_rooms=0, test_rooms=1, seed=5)["test"]
    truth = Layout.parse(rows[0]["layout"])
    lean = np.array([0.05, -0.03])
    up = (*lean.tolist(), float(np.sqrt(1 - lean @ lean)))
    expected = truth.with_up_axis("z", up)
    scan = np.asarray(rows[0]["points"]) @ expected.upright_rotation
    (room,) = detect.processor.read(scan, align=True)
    words = detect.processor.answer(expected, room)
    found = detect(scan, align=True, logits_processor=[dictated(detect, words)], task="all")
    assert "leveled by 3." in caplog.text
    boxes, labels = expected.as_boxes()
    assert sorted(one["label"] for one in found) == sorted(labels)
    for one in found:
        own = [corner for corner, label in zip(expected.corners(), labels, strict=True) if label == one["label"]]
        assert min(np.abs(np.sort(one["box"]["corners"], 0) - np.sort(other, 0)).max() for other in own) < 0.06
    (answer,) = write(scan, align=True, logits_processor=[dictated(write, words)])
    np.testing.assert_allclose(answer["layout"]["up"], up, atol=0.005)
    assert any(line.startswith("leveled by 3.") for line in answer["frame"])
    # Left as it is, of the frame's parts the others are found all the same.
    (room,) = detect.processor.read(scan, align="up_axis,unit,floor")
    assert room.frame.up is None and room.frame.angle == 0 and len(room.frame.sentences) == 3
    with raises(ValueError, naming="align=['tilt']; expected True, False or"):
        write(scan, align="tilt")


def test_answers_can_be_held_to_the_grammar(write):
    free = write(scan(), max_new_tokens=40)[0]
    assert free["dropped"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no walls")
        (held,) = write(scan(), max_new_tokens=400, grammar=True)
    assert not held["dropped"]

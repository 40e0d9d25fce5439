"""Fine-tuning of SpatialLM: rows, labels, what is trained, and a run with its card."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_any3d import AutoModelForPointCloudTextToText, load_point_dataset
from hf_any3d.modeling.spatiallm import Box, Layout
from hf_any3d.processing.rooms import SpatialLMProcessor
from hf_any3d.training.layouts import (
    LayoutCollator,
    LayoutDataArguments,
    LayoutModelArguments,
    LayoutRows,
    Layouts,
    adapted,
    points_in_box,
    train_layouts,
)
from tests.common.test_quantization import without_compiler  # noqa: F401
from tests.errors import raises
from tests.tiny_spatiallm import fitting_spatiallm, tiny_processor

ROOMS = {"train_rooms": 4, "validation_rooms": 1, "test_rooms": 1, "num_points": 700, "num_objects": 2}


@pytest.fixture(scope="module")
def rooms():
    return load_point_dataset("rooms_with_layouts", **ROOMS)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(num_bins=64, stride=2, clean=False)


@pytest.fixture(scope="module")
def start(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    model = fitting_spatiallm(processor)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def near(layout: Layout, points: np.ndarray) -> list[int]:
    """Count the points within 5 cm of the lower edge of each wall."""
    counts = []
    for wall in layout.walls:
        start, end = np.array([wall.ax, wall.ay]), np.array([wall.bx, wall.by])
        along = (end - start) / np.linalg.norm(end - start)
        own = points[:, :2] - start
        beside = np.abs(own @ np.array([-along[1], along[0]])) < 0.05
        counts.append(int((beside & (own @ along > -0.05) & (own @ along < np.linalg.norm(end - start) + 0.05)).sum()))
    return counts


@pytest.mark.slow
def test_layouts_move_with_the_points(rooms, processor):
    rows = LayoutRows(rooms["train"], processor, seed=3, turns="any", sizes=(0.8, 1.2))
    first, again, plain = rows[1], rows[1], LayoutRows(rooms["train"], processor)[1]
    assert first["layout"] == again["layout"] and np.array_equal(first["room"].points, again["room"].points)
    rows.epoch = 1
    other = rows[1]
    assert other["layout"] != first["layout"]
    lengths = [
        math.dist(
            (row["layout"].walls[0].ax, row["layout"].walls[0].ay),
            (row["layout"].walls[0].bx, row["layout"].walls[0].by),
        )
        for row in (first, other, plain)
    ]
    assert all(0.8 <= length / lengths[2] <= 1.2 for length in lengths) and lengths[0] != lengths[1]
    for row in (first, other, plain):
        # The voxels of the room are those of the moved points.
        points = row["room"].points[:, :3] + row["room"].corner
        assert min(near(row["layout"], points)) > 10


def test_boxes_without_points_are_left_out(rooms, processor):
    all_boxes = LayoutRows(rooms["train"], processor, seed=0, turns="any")[0]["layout"].boxes
    assert len(LayoutRows(rooms["train"], processor, seed=0, min_points=1)[0]["layout"].boxes) == len(all_boxes) == 2
    assert not LayoutRows(rooms["train"], processor, seed=0, min_points=10_000)[0]["layout"].boxes


def test_points_near_a_box_are_counted_in_its_own_frame():
    box = Box(0, "bed", 1.0, 2.0, 0.5, math.pi / 2, 2.0, 1.0, 1.0)  # two meters along y
    points = np.array([[1, 2, 0.5], [1, 3.14, 0.5], [1, 3.16, 0.5], [1.64, 2, 0.5], [1.66, 2, 0.5], [1, 2, 1.14]])
    assert points_in_box(box, points, 0.15).tolist() == [True, True, False, True, False, True]
    straight = dataclasses.replace(box, angle=0.0)
    assert points_in_box(straight, points, 0.15).tolist() == [True, False, False, True, True, True]


@pytest.mark.parametrize("seed", [None, 0])
def test_turns_are_folded_on_request(rooms, processor, seed):
    settings = {} if seed is None else {"seed": seed, "turns": "none"}
    plain = LayoutRows(rooms["train"], processor, **settings)[1]["layout"]
    folded = LayoutRows(rooms["train"], processor, fold_quarter_turns=True, **settings)[1]["layout"]
    assert folded == plain.with_folded_turns()


def test_a_row_whose_layout_is_damaged_is_named(rooms, processor):
    damaged = rooms["train"].remove_columns("layout").add_column("layout", ["no layout"] * len(rooms["train"]))
    with raises(ValueError, naming="row 2: "):
        LayoutRows(damaged, processor)[2]


def test_answers_are_asked_row_by_row_and_scored_by_class(rooms, processor):
    rows, asked = LayoutRows(rooms["test"], processor), []

    class Model(torch.nn.Linear):
        """Writes all walls of a room, and no box."""

        def generate(self, **given):
            asked.append((given, self.training))
            row = rows[len(asked) - 1]
            answer = processor.answer(dataclasses.replace(row["layout"], boxes=()), row["room"])
            ids = processor.tokenizer(answer)["input_ids"]
            return torch.cat([given["input_ids"], torch.tensor([ids])], dim=1)

    logged = []
    trainer = SimpleNamespace(
        model=Model(1, 1).train(),
        evaluate=lambda rows, metric_key_prefix: {f"{metric_key_prefix}_loss": 0.25},
        log_metrics=lambda *given: logged.append(given),
    )
    task = Layouts(LayoutModelArguments("x"), LayoutDataArguments(max_new_tokens=2000), None)
    metrics, by_class = task.evaluate(trainer, {name: rooms[name] for name in ("train", "test")}, processor)
    ((given, is_training),) = asked
    assert trainer.model.training and not is_training and given["logits_processor"]
    assert given["max_new_tokens"] == 2000 and given["do_sample"] is False
    for name, values in processor([rows[0]["room"]]).items():
        assert torch.equal(given[name], values)
    assert metrics.keys() == {"test"} == by_class.keys()
    scores, labels = by_class["test"], {box.label for box in rows[0]["layout"].boxes}
    assert scores["wall"] > 0.0 and all(scores[label] == 0.0 for label in labels)  # bins are coarse here
    mean = sum(scores.values()) / len(scores)
    assert metrics["test"]["f1_25"] == pytest.approx(mean) and metrics["test"]["loss"] == 0.25
    assert logged == [("test", metrics["test"])]


def test_rows_with_boxes_alone_are_layouts_of_objects(rooms, processor):
    rows = LayoutRows(rooms["train"].remove_columns("layout"), processor)
    found, whole = rows[0]["layout"], LayoutRows(rooms["train"], processor)[0]["layout"]
    assert not found.walls and [box.label for box in found.boxes] == [box.label for box in whole.boxes]
    with raises(ValueError, naming="'layout', nor boxes with classes"):
        LayoutRows(rooms["train"].remove_columns(["layout", "boxes", "box_labels"]), processor)


def test_labels_are_the_answers_and_nothing_else(rooms, processor):
    rows = [LayoutRows(rooms["train"], processor)[number] for number in (0, 1)]
    batch = LayoutCollator(processor)(rows)
    prompts = processor([row["room"] for row in rows], padding_side="right")
    tokenizer = processor.tokenizer
    left_out = batch["input_ids"].shape[1] - batch["logits_to_keep"]
    assert left_out == int(prompts["attention_mask"].sum(dim=1).min()) - 1 > 0
    for number, row in enumerate(rows):
        labels = torch.nn.functional.pad(batch["labels"][number], (left_out, 0), value=-100)
        told = labels != -100
        text = processor.answer(row["layout"], row["room"])
        assert tokenizer.decode(labels[told]) == text + tokenizer.eos_token
        assert torch.equal(batch["input_ids"][number][told], labels[told])
        length = int(prompts["attention_mask"][number].sum())
        assert torch.equal(batch["input_ids"][number][:length], prompts["input_ids"][number][:length])
        assert not told[:length].any() and int(batch["attention_mask"][number].sum()) == length + int(told.sum())
        back = row["room"].to_scan(Layout.parse(text, strict=True).unquantized(64))
        assert sorted(box.label for box in back.boxes) == sorted(box.label for box in row["layout"].boxes)
    only = processor([rows[0]["room"]], task="objects", layouts=[rows[0]["layout"]])
    assert "wall" not in tokenizer.decode(only["labels"][0][only["labels"][0] != -100])
    with raises(ValueError, naming="argument"):  # of zip: one layout for two rooms
        processor([row["room"] for row in rows], layouts=[rows[0]["layout"]])


def test_scores_of_prompts_are_not_computed_and_the_loss_is_the_same(rooms, processor):
    rows = [LayoutRows(rooms["train"], processor)[number] for number in (0, 1)]
    model = fitting_spatiallm(processor)  # nothing is drawn, as it does not train
    whole = processor([row["room"] for row in rows], layouts=[row["layout"] for row in rows])
    expected = model(**whole)
    expected.loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    batch = LayoutCollator(processor)(rows)
    found = model(**batch)
    found.loss.backward()
    assert found.logits.shape[:2] == batch["labels"].shape and found.logits.shape[1] < expected.logits.shape[1]
    torch.testing.assert_close(found.loss, expected.loss)
    for name, weight in model.named_parameters():
        assert (weight.grad is None) == (name not in gradients)
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, gradients[name], msg=name)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"peft": "none"}, set()),
        ({"peft": "full"}, {"language_model"}),
        ({"peft": "full", "adapt": ["language", "encoder"]}, {"language_model", "point_encoder"}),
        ({}, {"language_model"}),
        ({"adapt": ["encoder"], "peft_config": {"r": 2}}, {"point_encoder"}),
        ({"peft": "guided_adapter", "peft_config": {"r": 2}}, {"point_encoder"}),
        ({"peft": "BitFit", "adapt": ["encoder"]}, {"point_encoder"}),
        ({"peft": "ia3"}, {"point_encoder"}),
    ],
)
def test_what_is_trained(processor, given, expected):
    model = adapted(fitting_spatiallm(processor), LayoutModelArguments("any", **given))
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    found = {part for part in ("language_model", "point_encoder") if any(part in name for name in names)}
    assert found == expected
    assert any("input_projection" in name for name in names) and any(".projector" in name for name in names)
    own = {"lora": "lora_", "guided_adapter": "guided_adapter_", "ia3": "ia3_"}.get(given.get("peft", "lora"))
    if own:
        assert all(own in name or "modules_to_save" in name for name in names)


@pytest.mark.slow
def test_a_run_trains_an_adapter_evaluates_it_and_resumes(start, tmp_path):
    words = ["--model_name_or_path", start, "--output_dir", tmp_path, "--dataset_options", json.dumps(ROOMS)]
    words += ["--adapt", "language", "encoder", "--peft_config", '{"r": 2}', "--per_device_train_batch_size", 2]
    words += ["--num_train_epochs", 2, "--max_new_tokens", 60, "--use_cpu", "--report_to", "none"]
    report = train_layouts([str(word) for word in words])
    assert set(report.metrics) == {"validation", "test"}
    assert np.isfinite(report.metrics["test"]["loss"]) and 0 <= report.metrics["test"]["f1_25"] <= 1
    assert report.peak_memory and report.selection["metric"] == "loss" and report.training["steps"] == 4
    assert (tmp_path / "adapter_model.safetensors").is_file()
    model = AutoModelForPointCloudTextToText.from_pretrained(tmp_path)
    assert "storage" in SpatialLMProcessor.from_pretrained(tmp_path).classes and model.config.model_type == "spatiallm"
    longer = [str(word) for word in words]
    longer[longer.index("--num_train_epochs") + 1] = "3"
    resumed = train_layouts(longer)
    assert resumed.training["resumed_from"] is not None and resumed.training["steps"] == 6


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "--model_name_or_path is missing"),
        (
            ["--peft", "guided_adapter", "--adapt", "language"],
            "--adapt language cannot be combined with --peft guided_",
        ),
        (["--adapt", "head"], "--adapt head; expected language or encoder"),
        (["--turns", "half"], "turns='half'; expected one of 'none', 'quarter', 'any'"),
        (["--sizes", "1.2", "0.8"], "--sizes 1.2 0.8; expected the smallest"),
        (["--up_axis", "y"], "up_axis='y'; expected one of 'z'"),
        (["--augment", "flip"], "--augment flip is not for layouts; use --turns and --sizes"),
        (["--peft", "none", "--load_in_8bit"], "--peft_config have no effect with --peft none"),
        (["--peft", "full", "--peft_config", '{"r": 2}'], "--peft_config have no effect with --peft full"),
        (["--peft", "ia3", "--adapt", "language", "encoder"], "--adapt language encoder cannot be combined"),
        (["--sizes", "1"], "--sizes 1.0; expected the smallest and the largest factor"),
        (["--sizes", "0", "1"], "--sizes 0.0 1.0; expected the smallest"),
        (["--num_points", "9"], "num_points=9; expected one of 0"),
        (["--answer", "walls"], "answer='walls'; expected "),
    ],
)
def test_wrong_arguments_are_named(words, match, tmp_path):
    given = ["--output_dir", str(tmp_path), "--use_cpu", *(["--model_name_or_path", "x"] if words else []), *words]
    with pytest.raises(ValueError, match=match):
        train_layouts(given)


@pytest.mark.parametrize("knows", [True, False])
def test_rows_of_a_run_are_moved_as_it_was_told(knows, rooms, start, tmp_path):
    texts = rooms["train"]["layout"]
    name, labels = start, sorted({box.label for text in texts for box in Layout.parse(text).boxes})
    if knows:
        processor = SpatialLMProcessor.from_pretrained(start)
        processor.classes = [*labels, "piano"]
        processor.save_pretrained(name := tmp_path / "knows")
        AutoModelForPointCloudTextToText.from_pretrained(start).save_pretrained(name)
    words = ["--output_dir", tmp_path, "--model_name_or_path", name, "--use_cpu", "--report_to", "none", "--seed", 5]
    words += ["--answer", "objects", "--turns", "any", "--peft", "full", "--sizes", 0.5, 1.5, "--min_box_points", 3]
    words += ["--fold_quarter_turns"]
    task = Layouts.parse([str(word) for word in words])
    model, processor = task.build(rooms)
    assert processor.classes == ([*labels, "piano"] if knows else labels)
    trainer = task.build_trainer(model, rooms, processor)
    names = ("processor", "seed", "turns", "sizes", "min_points", "fold_quarter_turns")
    assert [getattr(trainer.train_dataset, name) for name in names] == [processor, 5, "any", (0.5, 1.5), 3, True]
    judged = [getattr(trainer.eval_dataset, name) for name in names]
    assert judged == [processor, None, "quarter", (1.0, 1.0), 0, True]
    assert trainer.data_collator == LayoutCollator(processor, "objects")

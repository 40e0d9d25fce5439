"""SpatialLMProcessor makes the voxels of the released program, its prompts, and layouts in the frame of a scan."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from hf_any3d.data.frames.room_voxels import clean_room, voxelize_room
from hf_any3d.modeling.layers.layouts import KINDS
from hf_any3d.modeling.spatiallm import Layout, Wall
from hf_any3d.processing.rooms import CLASSES, END, PLACE, START, SpatialLMProcessor
from tests.chat.tiny_tokenizers import byte_tokenizer
from tests.errors import raises
from tests.modeling.spatiallm.reference_case import SpatialLMCase
from tests.reference.fill import points
from tests.tiny_spatiallm import tiny_processor

FOLDER = Path(__file__).parents[1] / "reference"
CASE = json.loads((FOLDER / "spatiallm_preprocess.json").read_text())
EXPECTED = load_file(FOLDER / "spatiallm_preprocess.safetensors")
PROMPTS = json.loads((FOLDER / "spatiallm_prompt.json").read_text())
BINS = CASE["num_bins"]
TASKS = {"all": "all", "arch": "layout", "object": "objects"}


def raw(spec: dict) -> tuple[np.ndarray, np.ndarray | None]:
    values = points(spec["name"], 1, spec["count"], 6)[0].astype(np.float64)
    scale = np.ones((spec["count"], 1))
    if stray := spec.get("stray"):
        scale[:stray, 0] += 3 * np.arange(stray) / stray
    xyz = values[:, :3] * (np.array(spec["scale"]) * scale) + np.array(spec["offset"])
    return xyz, values[:, 3:] if spec["colors"] else None


@pytest.mark.parametrize("number", range(3))
def test_voxels_of_the_released_program(number):
    spec = CASE["clouds"][number]
    xyz, colors = raw(spec)
    colors = None if colors is None else np.trunc(colors * 255)
    room = voxelize_room(xyz, colors, BINS)
    assert np.array_equal(room.index, EXPECTED[f"{number}.index"])
    assert np.array_equal(room.inverse, EXPECTED[f"{number}.inverse"])
    rows = np.concatenate([room.grid_coord, room.points], axis=1)
    step = {"every 10th row": 10, "every 5th row": 5}.get(spec["feature_rows"], 1)
    assert np.array_equal(rows[::step], EXPECTED[f"{number}.features"])
    rule = CASE["train_random"]
    draws = (rule["a"] * np.arange(spec["cells"]) + rule["b"]) % spec["largest_cell"]
    drawn = voxelize_room(xyz, colors, BINS, draws)
    assert np.array_equal(drawn.index, EXPECTED[f"{number}.train_index"])


def test_cleaning_of_the_released_program():
    spec = CASE["cleanup"]
    xyz, colors = raw(spec)
    found, means = clean_room(xyz, colors, CASE["grid_size"])
    assert len(found) == spec["kept"]
    kept = EXPECTED["cleanup.kept"].astype(bool)
    # Every seventh voxel is stored, whether it is kept or not.
    stored = EXPECTED["cleanup.points"][kept[::7]]
    places = (np.cumsum(kept) - 1)[::7][kept[::7]]
    np.testing.assert_allclose(found[places], stored, atol=1e-12, rtol=0)
    np.testing.assert_allclose(means[places], EXPECTED["cleanup.colors"][kept[::7]], atol=1e-12, rtol=0)
    room = voxelize_room(found, np.trunc(means * 255 + 1e-9), BINS)
    assert np.array_equal(room.grid_coord, EXPECTED["cleanup.grid"])
    np.testing.assert_allclose(room.points[::9], EXPECTED["cleanup.features"][:, 3:], atol=1e-12, rtol=0)


@pytest.mark.parametrize("prompt", PROMPTS["prompts"])
@pytest.mark.filterwarnings("error")
def test_prompts_of_the_released_program(prompt):
    processor = tiny_processor(code_template=PROMPTS["template_stub"])
    assert list(CLASSES) == PROMPTS["categories"]
    # The released program passes over classes where nothing is asked about boxes.
    classes = [] if prompt["detect"] == "arch" else prompt["categories"]
    text = processor.instruction(TASKS[prompt["detect"]], classes)
    assert f"{START}{PLACE}{END}{text}" == prompt["content"]


def room_cloud(seed: int, count: int = 3000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    xyz = rng.random((count, 3)) * (2.0, 1.5, 1.0) + (5, -3, 2)
    return np.concatenate([xyz, rng.random((count, 3))], axis=1).astype(np.float32)


def test_prompts_have_a_place_for_every_token_of_the_model():
    processor = tiny_processor()
    rooms = processor.read([room_cloud(0), room_cloud(1)[:1000]])
    inputs = processor(rooms)
    place = processor.tokenizer.convert_tokens_to_ids(PLACE)
    model = SpatialLMCase("qwen").model
    with torch.no_grad():
        features = model.get_point_features(inputs["points"], inputs["grid_coord"], inputs["point_mask"])
        alone = model.get_point_features(
            *(torch.as_tensor(own)[None] for own in (rooms[1].points.astype(np.float32), rooms[1].grid_coord))
        )
    assert (inputs["input_ids"] == place).sum(dim=1).tolist() == [len(own) for own in features]
    torch.testing.assert_close(features[1], alone[0])
    again = processor([room_cloud(0), room_cloud(1)[:1000]])
    assert all(torch.equal(inputs[name], again[name]) for name in processor.model_input_names)


def test_layouts_come_back_in_the_frame_of_the_scan():
    processor = tiny_processor()
    rooms = processor.read(room_cloud(0))
    own = Layout.of([Wall(0, 5.1, -2.5, 2.1, 6.9, -2.5, 2.1, 1.0)])
    text = own.translated(-rooms[0].corner).quantized(processor.num_bins).write()
    answers = torch.tensor([processor.tokenizer(text, add_special_tokens=False)["input_ids"]])
    (found,) = processor.decode_layouts(answers, rooms, strict=True)
    assert [vars(found.walls[0])[name] for name in ("ax", "by", "az")] == pytest.approx([5.1, -2.5, 2.1], abs=0.013)


def test_random_choices_follow_the_seed():
    processor = tiny_processor(choice="random", clean=False)
    # Two points in every cell.
    cloud = np.concatenate([room_cloud(0), room_cloud(0) + np.array([1e-3, 0, 0, 0, 0, 0], np.float32)])
    first, second, other = (processor.read(cloud, seed=seed)[0].index for seed in (1, 1, 2))
    assert np.array_equal(first, second) and not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("task", "allowed"), [("all", {*KINDS}), ("layout", {"wall", "door", "window"}), ("objects", {"bbox"})]
)
def test_the_grammar_has_the_lines_of_the_task(task, allowed):
    language = tiny_processor().grammar(task)[0].grammar
    assert {[*KINDS][number] for number in language.kinds} == allowed


def test_long_scans_and_unknown_words_are_told():
    processor = tiny_processor(clean=False)
    with pytest.warns(UserWarning, match=r"the scan is 1\d+\.\d long, more than the 32 m .* in meters\?"):
        processor.read(room_cloud(0) * (50, 50, 50, 1, 1, 1))
    with raises(ValueError, naming="'unicorn', which the model was"):
        processor.instruction("objects", ["bed", "unicorn"])
    with raises(ValueError, naming="classes with task='layout'"):
        processor.instruction("layout", ["bed"])
    with raises(ValueError, naming="'rooms'"):
        processor.instruction("rooms")
    with raises(ValueError, naming="'<|point_start|>'"):
        SpatialLMProcessor(byte_tokenizer())

"""What `SpatialLMProcessor` does with a scan and with answers, step by step, with stand-ins for the steps."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_any3d import spatiallm_processing as module
from hf_any3d.data.files import PointCloudData
from hf_any3d.modeling.layers.boxes import UP_AXES
from hf_any3d.modeling.spatiallm import Layout, Wall
from hf_any3d.spatiallm_processing import END, PLACE, START, TASKS, SpatialLMProcessor
from tests.tiny_spatiallm import tiny_processor

TEN = np.random.default_rng(0).random((40, 3)) * 2


@pytest.fixture
def steps(monkeypatch):
    """What the steps are given; voxels are the points and colors themselves."""
    done = []

    class Frame:
        warnings = ("no floor",)

        def apply(self, points):
            done.append(("applied", points))
            return points + 100

    def voxelize(points, colors, bins, draws):
        done.append(("voxels", points, colors, bins, draws))
        return SimpleNamespace(frame=None, offset=None)

    monkeypatch.setattr(
        module, "clean_room", lambda *given: done.append(("clean", *given)) or (given[0] + 7, given[1])
    )
    monkeypatch.setattr(module, "voxelize_room", voxelize)
    monkeypatch.setattr(module, "find_frame", lambda points, **given: done.append(("frame", points, given)) or Frame())
    return done


def same(found, *expected):
    """Assert that a step was given some values."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, np.ndarray):
            np.testing.assert_allclose(one, other, atol=1e-6)
        else:
            assert one == other


@pytest.mark.parametrize("clean", [True, False])
def test_a_scan_is_cleaned_and_its_colors_are_whole_bytes(clean, steps):
    colors = np.random.default_rng(1).integers(0, 256, (40, 3)) / np.float32(255)
    cloud = PointCloudData(TEN, colors=colors, offset=np.array([5.0, 6, 7]))
    processor = tiny_processor(clean=clean, num_bins=64)
    (room,) = processor.read(cloud)
    whole = np.round(colors * 255)
    if clean:
        same(steps[0], "clean", TEN.astype(np.float32), whole / 255, 32 / 64)
    same(steps[-1], "voxels", TEN.astype(np.float32) + 7 * clean, whole, 64, None)
    assert len(steps) == 1 + clean and room.frame is None and room.offset.tolist() == [5, 6, 7]
    assert np.array_equal(steps[-1][2], np.trunc(steps[-1][2])), "cut to whole numbers"
    processor.read(PointCloudData(TEN))
    assert not steps[-1][2].any(), "without colors all are black"


def test_a_frame_is_found_as_the_call_or_the_processor_says(steps):
    processor = tiny_processor(align=True, clean=False)
    cloud = PointCloudData(TEN, np.zeros_like(TEN))
    with pytest.warns(UserWarning, match="^no floor$"):
        (room,) = processor.read(cloud)
    parts = steps[0][2]["parts"]
    assert len(parts) == 5 and steps[0][2]["up_axis"] == cloud.up_axis
    same(steps[1], "applied", TEN.astype(np.float32))
    same(steps[2][:2], "voxels", TEN.astype(np.float32) + 100)
    assert room.frame is not None
    with pytest.warns(UserWarning):
        processor.read(cloud, align=["unit", "floor"], up_axis="x")
    assert steps[3][2] == {"up_axis": "x", "parts": ("unit", "floor")}
    steps.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (room,) = processor.read(cloud, align=False)
        assert room.frame is None and len(steps) == 1
        (room,) = processor.read(cloud, align=False, up_axis="y")
    assert room.frame.up_axis == "y" and [one[0] for one in steps] == ["voxels", "voxels"]
    # Its own turn: the axis that points up becomes the third.
    assert np.ptp(steps[1][1][:, 2]) == pytest.approx(np.ptp(TEN[:, 1]), abs=1e-5)
    assert "y" in UP_AXES
    with pytest.raises(ValueError, match="up_axis: 'up'; expected one of"):
        processor.read(cloud, up_axis="up")


def test_random_choices_are_drawn_once_for_all_scans_of_a_call(steps):
    processor = tiny_processor(choice="random", clean=False)
    processor.read([PointCloudData(TEN), PointCloudData(TEN)], seed=3)
    assert steps[0][4] is steps[1][4]
    assert steps[0][4].random() == np.random.default_rng(3).random()


@pytest.mark.parametrize(
    ("cloud", "message"),
    [
        (
            PointCloudData(TEN[:3], faces=np.array([[0, 1, 2]])),
            "a mesh; expected a cloud of points, such as sample_su",
        ),
        (PointCloudData(TEN[:1]), "1 points; expected at least "),
    ],
)
def test_what_is_no_scan_is_named_by_its_number_among_several(cloud, message, steps):
    processor = tiny_processor()
    with pytest.raises(ValueError, match=f"^{message}"):
        processor.read(cloud)
    with pytest.raises(ValueError, match=f"^cloud 1: {message}"):
        processor.read([PointCloudData(TEN), cloud])
    assert [one[0] for one in steps] == ["clean", "voxels"]


@pytest.mark.parametrize(("size", "warned"), [(31.9, False), (32.0, False), (32.2, True)])
def test_a_scan_that_is_longer_than_the_model_knows_is_told(size, warned, steps):
    points = np.array([[0.0, 0, 0], [1, size, 2], [0, 1, 1]])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny_processor(clean=False).voxelize(points, np.zeros((3, 3)))
    told = f"the scan is {size:.1f} long, more than the 32 m that the model knows; is it in meters?"
    assert [str(one.message) for one in caught] == ([told] if warned else [])


class CountedRoom(module.VoxelizedRoom):
    """A room with some points and a number of tokens."""

    def __init__(self, points, grid_coord, tokens):
        object.__setattr__(self, "points", np.concatenate([points, points], axis=1))
        object.__setattr__(self, "grid_coord", grid_coord)
        object.__setattr__(self, "tokens", tokens)

    def count_tokens(self, stride):
        return self.tokens * stride


def room(count, tokens):
    cells = np.arange(3 * count).reshape(count, 3)
    return CountedRoom(cells + 0.5, cells, tokens)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_prompts_and_voxels_of_several_rooms_are_filled_up(system):
    processor = tiny_processor(system=system, stride=2)
    rooms = [room(2, 1), room(5, 3), room(3, 2)]
    inputs = processor(rooms, task="layout", return_tensors="np")
    tokenizer, rows = processor.tokenizer, []
    for tokens in (2, 6, 4):
        before = f"[system] {system}\n" if system else ""
        text = f"{before}[user] {START}{PLACE * tokens}{END}{processor.instruction('layout')}\n[assistant] "
        rows.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    longest = max(map(len, rows))
    pad = tokenizer.pad_token_id
    assert inputs["input_ids"].tolist() == [[pad] * (longest - len(row)) + row for row in rows]
    assert inputs["attention_mask"].tolist() == [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    assert inputs["point_mask"].tolist() == [[n < count for n in range(5)] for count in (2, 5, 3)]
    for number, own in enumerate(rooms):
        count = len(own.points)
        np.testing.assert_array_equal(inputs["points"][number, :count], own.points)
        np.testing.assert_array_equal(inputs["grid_coord"][number, :count], own.grid_coord)
        assert not inputs["points"][number, count:].any() and not inputs["grid_coord"][number, count:].any()
    assert inputs["points"].dtype == np.float32 and "labels" not in inputs
    right = processor(rooms, task="layout", padding_side="right", return_tensors="np")["input_ids"]
    assert right.tolist() == [row + [pad] * (longest - len(row)) for row in rows]
    assert isinstance(processor(rooms)["input_ids"], torch.Tensor)


def test_answers_that_are_learned_follow_their_prompts(monkeypatch):
    processor = tiny_processor(stride=1)
    asked = []
    monkeypatch.setattr(
        SpatialLMProcessor,
        "answer",
        lambda own, *given: asked.append(given) or ("short" if len(asked) % 2 else "a longer"),
    )
    rooms = [room(2, 1), room(3, 4)]
    inputs = processor(rooms, task="objects", classes=["bed"], layouts=["A", "B"], return_tensors="np")
    assert [(layout, *rest) for layout, _, *rest in asked] == [("A", "objects", ["bed"]), ("B", "objects", ["bed"])]
    assert [given[1] for given in asked] == rooms
    tokenizer = processor.tokenizer
    plain = processor(rooms, task="objects", classes=["bed"], return_tensors="np")
    both = zip(plain["input_ids"], plain["attention_mask"], strict=True)
    prompts = [row[mask == 1].tolist() for row, mask in both]
    ends = [
        tokenizer(f"{text}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
        for text in ("short", "a longer")
    ]
    longest = max(len(prompt) + len(end) for prompt, end in zip(prompts, ends, strict=True))
    for number, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
        fill = longest - len(prompt) - len(end)
        assert inputs["input_ids"][number].tolist() == prompt + end + [tokenizer.pad_token_id] * fill
        assert inputs["labels"][number].tolist() == [-100] * len(prompt) + end + [-100] * fill
        assert inputs["attention_mask"][number].tolist() == [1] * (len(prompt) + len(end)) + [0] * fill
    left = processor(rooms, layouts=["A", "B"], padding_side="left", return_tensors="np")
    assert (left["labels"][:, -1] == tokenizer.eos_token_id).all()
    with pytest.raises(ValueError, match="^1 layouts for 2 rooms; expected one for each$"):
        processor(rooms, layouts=["A"])


def test_layouts_of_answers_are_read_as_the_call_says(monkeypatch):
    processor, given = tiny_processor(lower_edge=True, num_bins=64), []
    layout = Layout.of([Wall(0, 1, 2, 3, 4, 5, 6, 7)])

    def parse(text, **how):
        given.append((text, how))
        return layout

    monkeypatch.setattr(Layout, "parse", staticmethod(parse))
    monkeypatch.setattr(
        Layout, "unquantized", lambda own, bins, lower_edge: given.append((own, bins, lower_edge)) or "numbers"
    )
    marks = module._MARKS
    rows = processor.tokenizer([f"{marks[0]}one{marks[1]}", "two"], add_special_tokens=False)["input_ids"]
    fill = [processor.tokenizer.pad_token_id] * (len(rows[0]) - len(rows[1]))
    answers = torch.tensor([rows[0], [*rows[1], *fill]])
    scan = SimpleNamespace(to_scan=lambda numbers: f"{numbers} of the scan")
    found = processor.decode_layouts(answers, [scan, scan], strict=True, keep_unclosed=True)
    assert found == ["numbers of the scan"] * 2
    how = {"strict": True, "keep_unclosed": True}
    assert [one for one in given if isinstance(one[1], dict)] == [("one", how), ("two", how)]
    assert [one for one in given if not isinstance(one[1], dict)] == [(layout, 64, True)] * 2
    processor.decode_layouts(answers[:1], [scan])
    assert given[-2][1] == {"strict": False, "keep_unclosed": False}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_bins": 0}, "num_bins=0; expected at least 1"),
        ({"stride": 0}, "stride=0; expected at least 1"),
        ({"clean": 1}, "clean: 1; expected one of True, False"),
        ({"choice": "any"}, "choice: 'any'; expected one of 'middle', 'random'"),
        ({"lower_edge": None}, "lower_edge: None; expected one of True, False"),
        ({"align": ["roof"]}, "roof"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor(**settings)
    assert tiny_processor(num_bins=1, stride=1).num_bins == 1


@pytest.mark.parametrize(
    ("settings", "is_trained", "told"),
    [
        ({}, True, None),
        ({"code_template": "code"}, True, None),
        ({"code_template": "code", "template_sha256": "0"}, False, "code_template is not the text that the model was"),
        ({"template_sha256": "0"}, False, "code_template lacks the text that the model was"),
    ],
)
def test_the_text_of_the_training_is_missed(settings, is_trained, told):
    processor = tiny_processor(**settings)
    assert processor.has_trained_template is is_trained
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        text = processor.instruction("all")
    assert [told in str(one.message) for one in caught] == ([] if told is None else [True])
    declared = " The reference code is as followed: code" if "code_template" in settings else ""
    assert text == f"{TASKS['all']}{declared}"


@pytest.mark.parametrize(("token", "number"), [(START, None), (PLACE, -1), (END, 3), (PLACE, 3)])
def test_a_tokenizer_needs_the_three_tokens_of_a_cloud(token, number):
    numbers = {START: 0, PLACE: 1, END: 2} | {token: number}
    tokenizer = SimpleNamespace(convert_tokens_to_ids=numbers.get, unk_token_id=3)
    with pytest.raises(ValueError) as caught:
        SpatialLMProcessor(tokenizer)
    assert str(caught.value) == f"tokenizer has no token {token!r}; expected {START}, {PLACE} and {END}"

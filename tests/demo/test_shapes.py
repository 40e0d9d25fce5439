"""Shapes of the demo: how they are listed, found and described, and what of them is shown."""

from types import SimpleNamespace

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData
from hf_any3d.demo import conversation as module, page as page_module
from hf_any3d.demo.conversation import Conversation, _note
from hf_any3d.demo.page import DemoPage, ExampleShapes, generation_settings
from hf_any3d.visualization.viewer import clouds_page
from tests.errors import raises


def cloud(count: int, **fields) -> PointCloudData:
    return PointCloudData(np.random.default_rng(0).normal(size=(count, 3)), **fields)


FACES = {"faces": np.array([[0, 1, 2]])}
COLORS = {"colors": np.full((3, 3), 0.5)}


@pytest.mark.parametrize(
    ("given", "settings", "note"),
    [
        (cloud(1200), {}, "1,200 points."),
        (cloud(1201), {}, "1,200 of 1,201 points, drawn at random."),
        (cloud(1199), {}, "1,199 points, repeated up to 1,200."),
        (cloud(2000), {"sampling": "farthest"}, "1,200 of 2,000 points, spread evenly."),
        (cloud(2000), {"sampling": "first"}, "1,200 of 2,000 points, the first."),
        (cloud(3, **FACES), {}, "1,200 points on the surface of a mesh."),
        (cloud(3, **COLORS), {"features": ("xyz", "rgb")}, "3 points, repeated up to 1,200."),
        (
            cloud(3),
            {"features": ("xyz", "rgb"), "default_rgb": (0, 0, 0.0)},
            "3 points, repeated up to 1,200. The file has no colors: the model sees it black, "
            "here colors show height.",
        ),
        (
            cloud(3, **FACES),
            {"features": ("xyz", "rgb"), "default_rgb": (0, 0.5, 0)},
            "1,200 points on the surface of a mesh. The file has no colors: the model sees it in color (0, 0.5, 0), "
            "here colors show height.",
        ),
        (
            cloud(3, **FACES, face_colors=np.full((1, 3), 0.5)),
            {"features": ("xyz", "rgb")},
            "1,200 points on the surface of a mesh.",
        ),
        (
            cloud(3),
            {"features": ("xyz", "rgb"), "default_rgb": None},
            "3 points, repeated up to 1,200. The file has no colors: the model sees it black, "
            "here colors show height.",
        ),
    ],
)
def test_a_note_tells_which_points_the_model_sees_and_in_which_color(given, settings, note):
    usual = {"num_points": 1200, "sampling": "random", "features": ("xyz",), "default_rgb": None}
    assert _note(given, SimpleNamespace(**usual | settings)) == note


@pytest.mark.parametrize(
    ("features", "fields", "channels"),
    [
        (("xyz",), COLORS, [0, 1, 2]),
        (("xyz", "rgb"), COLORS, [0, 1, 2, 3, 4, 5]),
        (("xyz", "normals", "rgb"), COLORS, [0, 1, 2, 6, 7, 8]),
        (("xyz", "rgb"), {}, [0, 1, 2]),
    ],
)
def test_a_shape_is_shown_with_its_own_colors(features, fields, channels, monkeypatch):
    prepared, made = np.arange(3 * 9.0).reshape(3, 9), []
    points = SimpleNamespace(num_points=3, sampling="random", features=features, default_rgb=None)
    processor = SimpleNamespace(feature_extractor=points, read_points=lambda clouds: [prepared])
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=90))
    pipe = SimpleNamespace(processor=processor, model=SimpleNamespace(config=config))
    monkeypatch.setattr(module, "ChatSession", lambda *given: made.append(given) or SimpleNamespace())
    conversation, shape = Conversation(pipe, "demo", context=70), cloud(3, **fields)
    found = conversation.open(shape)
    np.testing.assert_array_equal(found.points, prepared[:, channels])
    assert made == [(pipe, shape, "demo")] and conversation.context == 70 and found.note.startswith("3 points")
    assert Conversation(pipe).context == 90
    config.get_text_config = lambda: SimpleNamespace()
    assert Conversation(pipe).context == 400, "as in the released demo, where the model has no limit"


@pytest.mark.parametrize(("beams", "streams"), [({}, True), ({"num_beams": 1}, True), ({"num_beams": 2}, False)])
def test_an_answer_is_streamed_unless_several_beams_compete(beams, streams):
    asked = []

    def ask(question, **generation):
        asked.append((question, generation))
        return iter(["a", "b"]) if streams else "ab"

    conversation = object.__new__(Conversation)
    conversation._stopped = module.Event()
    conversation._session = SimpleNamespace(**{"stream" if streams else "ask": ask})
    assert list(conversation.ask("What?", top_k=5, **beams)) == (["a", "ab"] if streams else ["ab"])
    ((question, generation),) = asked
    (stop,) = generation.pop("stopping_criteria")
    assert question == "What?" and generation == {"top_k": 5, **beams} and stop.event is conversation._stopped


def test_room_is_made_for_the_answer_too():
    asked = []
    conversation = object.__new__(Conversation)
    conversation.context = 100
    conversation._session = SimpleNamespace(make_room=lambda *given: asked.append(given) or 3)
    assert conversation.make_room("a" * 2000, 30) == 3 and asked == [("a" * 2000, 70)]
    with pytest.raises(ValueError, match="the question has 2,001 characters; expected at most 2,000"):
        conversation.make_room("a" * 2001, 30)


def test_files_come_before_embedded_shapes_and_take_their_names(tmp_path, monkeypatch):
    own = {"chair.ply": "embedded chair", "lamp": "embedded lamp"}
    monkeypatch.setattr(page_module, "embedded_shapes", lambda: own)
    monkeypatch.setattr(page_module, "MOST_LISTED", 4)
    for name in ("b.PLY", "chair.ply", "a_8192.npy", "z.txt", "z.jpg"):
        (tmp_path / name).touch()
    examples = ExampleShapes(tmp_path)
    assert examples.names == ["a", "b.PLY", "chair.ply", "z.txt"]
    assert examples.get("chair.ply") == tmp_path / "chair.ply" and examples.get("lamp") == "embedded lamp"
    assert examples.get("a") == tmp_path / "a_8192.npy"
    with pytest.raises(ValueError, match=r"no example 'x{80}'; there are 5, such as \['a', 'b.PLY', 'chair.ply'\]"):
        examples.get("x" * 81)
    assert ExampleShapes().names == list(own)


def test_embedded_shapes_are_a_chair_and_one_of_each_class(monkeypatch, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    points = [[[number, 0, 0], [0, 1, 0], [0, 0, 1]] for number in range(5)]
    columns = {
        "points": points,
        "colors": [[[0, 128, 255]] * 3] * 5,
        "label": [2, 0, 2, 0, 1],
        "name": list("abcde"),
        "creator": ["me"] * 5,
        "license": ["CC0"] * 5,
        "more": [1] * 5,
    }
    pa.parquet.write_table(pa.table(columns), tmp_path / "test.parquet")
    monkeypatch.setattr(page_module, "FOLDER", tmp_path)
    shapes = page_module.embedded_shapes()
    assert list(shapes) == [f"{name} by me, CC0" for name in "abe"], "in the order of the file"
    assert [shape.points[0, 0] for shape in shapes.values()] == [0, 1, 4]
    np.testing.assert_allclose(shapes["b by me, CC0"].colors, [[0, 128 / 255, 1]] * 3, atol=1e-6)
    (tmp_path / "chair.ply").touch()
    assert list(page_module.embedded_shapes().items())[0] == ("chair.ply", tmp_path / "chair.ply")
    (tmp_path / "test.parquet").unlink()
    assert page_module.embedded_shapes() == {"chair.ply": tmp_path / "chair.ply"}


def test_a_shape_is_shown_upright(monkeypatch):
    points = np.random.default_rng(0).normal(size=(5, 6))
    points[:, 3:] = 0.5
    extractor = SimpleNamespace(up_axis="x")
    visitor = SimpleNamespace(
        open=lambda source: SimpleNamespace(points=points, note=f"{source}."),
        pipe=SimpleNamespace(processor=SimpleNamespace(feature_extractor=extractor)),
    )
    view, note, chat, notice = page_module._open(visitor, lambda: "mine")
    assert view == page_module.view_frame(clouds_page([points], up_axis="x", title="shape"))
    assert "mine. Drag to turn, wheel to zoom." in note and (chat, notice) == ([], "")


def test_settings_have_the_types_of_their_sliders():
    found = generation_settings(12.0, 3.0, 1)
    assert (found["max_new_tokens"], found["num_beams"], found["temperature"]) == (12, 3, 1.0)
    assert [type(found[name]) for name in ("max_new_tokens", "num_beams", "temperature")] == [int, int, float]
    with raises(ValueError, naming="zip"):
        generation_settings(12, 3)


def test_only_what_takes_long_shows_its_progress():
    """The answer grows by itself; opening a shape shows on the picture that it takes a while."""
    page = DemoPage("tiny", SimpleNamespace(names=[]), lambda: None).build()
    found = [
        (event["show_progress"], [page.blocks[number].elem_id for number in event["show_progress_on"] or []])
        for event in page.config["dependencies"]
    ]
    names = [getattr(event.fn, "__name__", None) for event in page.fns.values()]
    on_view = {"_open_example", "_read_upload", "_open_upload"}
    for name, (shown, where) in zip(names, found, strict=True):
        assert (shown, where) == (("full", ["view"]) if name in on_view else ("hidden", [])), name

"""The demo's conversations without the page."""

import itertools

import numpy as np
import pytest

from hf_any3d import example_file
from hf_any3d.data.example_shapes import ExampleShapes
from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.demo.conversation import LONGEST_QUESTION, Conversation
from hf_any3d.demo.uploads import AT_ONCE
from tests.chat.tiny_chat_model import NUM_POINTS, ForcedAnswer, cloud, tiny_chat_pipeline
from tests.demo import page as demo_page
from tests.errors import raises


@pytest.fixture(scope="module")
def pipe():
    return tiny_chat_pipeline()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.ply"
    write_point_cloud(path, PointCloudData(cloud()[:, :3], cloud()[:, 3:]))
    return path


def last(pieces):
    *_, answer = pieces
    return answer


@pytest.mark.slow
def test_visitors_have_separate_conversations(pipe, file, tmp_path):
    other = tmp_path / "other.ply"
    write_point_cloud(other, PointCloudData(cloud(1)[:, :3], cloud(1)[:, 3:]))
    alone = Conversation(pipe)
    alone.open(file)
    expected = [last(alone.ask(text, max_new_tokens=8)) for text in ("What is this?", "Why?")]
    one, two = Conversation(pipe), Conversation(pipe)
    one.open(file)
    first = last(one.ask("What is this?", max_new_tokens=8))
    two.open(other)
    elsewhere = last(two.ask("What is this?", max_new_tokens=8))
    assert [first, last(one.ask("Why?", max_new_tokens=8))] == expected
    assert elsewhere != first


@pytest.mark.slow
def test_answers_grow_and_those_of_beam_search_come_at_once(pipe, file):
    conversation = Conversation(pipe)
    conversation.open(file)
    words = ForcedAnswer(pipe.processor.tokenizer, "one two three ###")
    pieces = list(conversation.ask("Count!", max_new_tokens=40, logits_processor=[words]))
    # How much text a piece has differs among releases of transformers.
    assert pieces[-1] == "one two three" and len(pieces) > 1
    assert all(later.startswith(piece) for piece, later in itertools.pairwise(pieces))
    assert len(list(conversation.ask("And?", max_new_tokens=8, num_beams=2))) == 1


def test_stopped_answers_stay_in_the_conversation(pipe, file):
    conversation = Conversation(pipe)
    conversation.open(file)
    song = ForcedAnswer(pipe.processor.tokenizer, "la la la la " * 30)
    conversation.ready()
    pieces = conversation.ask("Sing!", max_new_tokens=200, logits_processor=[song])
    next(pieces)
    conversation.stop()
    answer = last(pieces)
    assert conversation.was_stopped and answer.startswith("la") and len(answer) < 100
    conversation.ready()
    assert not conversation.was_stopped and last(conversation.ask("And?", max_new_tokens=5))


def test_restarting_forgets_the_conversation_but_not_the_shape(pipe, file):
    conversation = Conversation(pipe)
    conversation.restart()  # no effect before a shape is open
    conversation.open(file)
    first, second = (last(conversation.ask("What is this?", max_new_tokens=8)) for _ in range(2))
    conversation.restart()
    assert last(conversation.ask("What is this?", max_new_tokens=8)) == first != second


@pytest.mark.slow
def test_oldest_questions_are_forgotten_and_the_shape_never(pipe, file):
    conversation = Conversation(pipe, context=150)
    conversation.open(file)
    forgotten = []
    for number in range(6):
        forgotten.append(conversation.make_room(f"Question {number}?", 20))
        last(conversation.ask(f"Question {number}?", max_new_tokens=20))
    assert forgotten[0] == 0 and sum(forgotten) > 0


def test_a_question_that_is_too_long_changes_nothing(pipe, file):
    conversation = Conversation(pipe, context=150)
    with raises(ValueError, naming="choose a shape"):
        conversation.make_room("What?", 20)
    conversation.open(file)
    last(conversation.ask("What?", max_new_tokens=5))
    with pytest.raises(ValueError, match=r"have 2\d\d tokens; expected at most 130"):
        conversation.make_room("What? " * 30, 20)
    assert Conversation(pipe, context=4000).context == 512, "no more than the language model takes"


def test_long_questions_are_refused_before_their_tokens_are_counted(pipe, file):
    conversation = Conversation(pipe)
    conversation.open(file)
    with pytest.raises(ValueError, match="the question has 2,000,000 characters; expected at most 2,000"):
        conversation.make_room("a" * 2_000_000, 20)


@pytest.mark.parametrize(
    ("count", "note"),
    [
        (NUM_POINTS, "40 points."),
        (30, "30 points, repeated up to 40."),
        (9000, "40 of 9,000 points, drawn at random."),
    ],
)
def test_clouds_are_resampled_to_the_points_of_the_model(pipe, tmp_path, count, note):
    generator = np.random.default_rng(0)
    rows = np.concatenate([generator.normal(size=(count, 3)), generator.integers(0, 256, (count, 3))], axis=1)
    np.save(tmp_path / "cloud.npy", rows)
    shape = Conversation(pipe).open(tmp_path / "cloud.npy")
    assert shape.points.shape == (NUM_POINTS, 6) and shape.note == note
    colors = {tuple(color) for color in (rows[:, 3:] / 255).round(4)}
    assert {tuple(color) for color in shape.points[:, 3:].astype(float).round(4)} <= colors, "0 to 255 became 0 to 1"


def test_shapes_without_colors_are_black_to_the_model_and_shown_by_height(pipe, tmp_path):
    np.save(tmp_path / "bare.npy", cloud()[:, :3])
    shape = Conversation(pipe).open(tmp_path / "bare.npy")
    assert shape.points.shape == (NUM_POINTS, 3) and "no colors: the model sees it black" in shape.note


def test_files_that_cannot_be_read_leave_the_conversation_alone(pipe, file, tmp_path):
    broken = tmp_path / "broken.ply"
    broken.write_text("nothing")
    np.save(tmp_path / "flat.npy", np.zeros((50, 3)))
    conversation = Conversation(pipe)
    conversation.open(file)
    before = last(conversation.ask("What?", max_new_tokens=5))
    for path, message in ((broken, "broken.ply: "), (tmp_path / "flat.npy", "all 40 points are equal")):
        with pytest.raises(ValueError) as caught:
            conversation.open(path)
        assert str(caught.value).startswith(message) and str(tmp_path) not in str(caught.value)
    conversation.restart()
    assert last(conversation.ask("What?", max_new_tokens=5)) == before


@pytest.mark.slow
def test_examples_are_a_folders_files_and_the_embedded_shapes(pipe, tmp_path):
    for name in ("a1b2_8192.npy", "lamp.ply", "notes.md"):
        (tmp_path / name).touch()
    (tmp_path / "folder.ply").mkdir()
    examples, embedded = ExampleShapes(tmp_path), ExampleShapes()
    assert examples.names == ["a1b2", "lamp.ply", *embedded.names]
    assert (
        examples.get("chair.ply") == example_file("chair.ply") and examples.get("a1b2") == tmp_path / "a1b2_8192.npy"
    )
    for unknown in ("../notes.md", "notes.md", ""):
        with raises(ValueError, naming="no example"):
            examples.get(unknown)
    assert len(embedded.names) == 19 and embedded.names[1] == "scopia/ceiling-lamp by Scopia, CC-BY-3.0"
    assert Conversation(pipe).open(embedded.get(embedded.names[1])).note == "40 of 1,024 points, drawn at random."


def test_folders_without_shapes_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no point cloud in this folder"):
        ExampleShapes(tmp_path)
    with raises(FileNotFoundError, naming="gone"):
        ExampleShapes(tmp_path / "gone")


@pytest.mark.slow
def test_the_page_reads_files_in_another_queue_and_limits_its_inputs(pipe):
    page = demo_page.DemoPage("me/model", ExampleShapes(), lambda: Conversation(pipe)).build()
    assert [(slider.low, slider.high, slider.default) for slider in demo_page.SLIDERS] == [
        (10, 200, 60),
        (1, 10, 1),
        (0.1, 2.0, 0.2),
    ], "those of the released demo"
    queues = {block.fn.__name__: block.concurrency_id for block in page.fns.values() if block.fn is not None}
    assert queues["read"] == "files" and queues["open_upload"] == queues["_answer"] == "model"
    limits = {block.concurrency_id: block.concurrency_limit for block in page.fns.values()}
    assert limits["model"] == 1 and limits["files"] == AT_ONCE > 1
    (question,) = [block for block in page.blocks.values() if getattr(block, "elem_id", None) == "question"]
    assert question.max_length == LONGEST_QUESTION
    with pytest.raises(Exception, match="greater than maximum|maximum value"):
        slider = next(block for block in page.blocks.values() if type(block).__name__ == "Slider")
        slider.preprocess(10**9)

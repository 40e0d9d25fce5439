"""What the pages do at each event, without a browser: which function is called, and what it changes."""

from functools import cache
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData
from hf_any3d.demo import page as page_module
from hf_any3d.demo.conversation import Conversation
from hf_any3d.demo.page import DemoPage, ExampleShapes, _answer, _open_upload, _submit, error_or_note
from hf_any3d.demo.task_pages import TaskPage, Visit
from hf_any3d.demo.uploads import LARGEST_UPLOAD
from tests.chat.tiny_chat_model import ForcedAnswer, cloud, tiny_chat_pipeline

SAME = {"__type__": "update"}
SHOWN, HIDDEN = {**SAME, "visible": True}, {**SAME, "visible": False}
SHAPES = SimpleNamespace(names=["chair"], get={"chair": PointCloudData(cloud()[:, :3])}.__getitem__)
NO_SHAPES = SimpleNamespace(names=[])
CHAT, CLASSES, WORDS = "chat", "point-cloud-classification", "zero-shot-point-cloud-classification"
SHORT = (10, 1, 0.2)  # values of the sliders


def said(who, text):
    return {"role": who, "content": text}


@pytest.fixture(scope="module")
def pipe():
    return tiny_chat_pipeline()


@pytest.fixture(scope="module")
def chat_page(pipe):
    return DemoPage("me/<model>", SHAPES, lambda: Conversation(pipe))


@pytest.fixture(scope="module")
def built(chat_page):
    """The page of a task as gradio has it; each is built once."""
    return cache(lambda task: (chat_page if task == CHAT else task_page(task)).build())


def task_page(task=CLASSES, shapes=SHAPES, words=(), ask=None):
    pipe = SimpleNamespace(up_axis="y", feature_extractor=SimpleNamespace(up_axis="y"))
    categories = ["ship"] if task == "point-cloud-segmentation" else []
    turns = task != "point-cloud-reconstruction"
    answers = SimpleNamespace(task=task, categories=categories, turns=turns, pipe=pipe, ask=ask)
    return TaskPage("me/<model>", shapes, answers, words)


def test_a_question_moves_into_the_chat_and_send_becomes_stop(pipe):
    conversation, chat = Conversation(pipe), [said("user", "a"), said("assistant", "b")]
    conversation.stop()
    found = _submit(conversation, "  What is this? ", chat)
    assert found == ([*chat, said("user", "What is this?")], "", SHOWN | HIDDEN, SHOWN)
    assert not conversation.was_stopped, "an earlier stop does not end the next answer"
    assert _submit(conversation, " \n", chat) == (chat, "", SHOWN, HIDDEN)
    (question,) = _submit(conversation, "a" * 9000, [])[0]
    assert question["content"] == "a" * 2001


def test_an_answer_grows_in_the_chat(pipe, monkeypatch):
    conversation, chat = Conversation(pipe), [said("user", [{"text": "What "}, {"text": "is it?"}])]
    conversation.open(SHAPES.get("chair"))
    words, stream = ForcedAnswer(pipe.processor.tokenizer, "a b ###"), conversation._session.stream
    asked = []

    def forced(question, **generation):
        asked.append((question, generation["max_new_tokens"], generation["temperature"]))
        return stream(question, logits_processor=[words], **generation)

    monkeypatch.setattr(conversation._session, "stream", forced)
    waiting, *grown, last = _answer(conversation, chat, *SHORT)
    assert waiting == ([*chat, said("assistant", "…")], SAME, "")
    assert grown == [([*chat, said("assistant", text)], SAME, SAME) for text in ("a", "a b")]
    assert last == ([*chat, said("assistant", "a b")], SAME, "")
    assert asked == [("What is it?", 10, 0.2)]
    for nothing in ([], [*chat, said("assistant", "a b")]):
        assert list(_answer(conversation, nothing, *SHORT)) == [(nothing, SAME, SAME)]


def test_a_question_without_an_answer_returns_to_the_text_box(pipe):
    chat = [said("user", "a"), said("assistant", "b"), said("user", "What?")]
    error = error_or_note("there is nothing to talk about yet; choose a shape", is_error=True)
    assert list(_answer(Conversation(pipe), chat, *SHORT)) == [(chat[:2], "What?", error)]


def test_a_visit_begins_with_the_first_example_and_a_new_shape_clears_the_chat(chat_page, tmp_path):
    conversation, view, note, chat, notice = chat_page._begin()
    assert isinstance(conversation, Conversation) and "<iframe" in view and (chat, notice) == ([], "")
    assert "40 points. " in note and "here colors show height. Drag to turn, wheel to zoom." in note
    assert chat_page._open_example(conversation, "chair") == (view, note, [], "")
    np.save(tmp_path / "mine.npy", cloud(1))
    selected, other, note, *cleared = _open_upload(conversation, str(tmp_path / "mine.npy"))
    assert selected is None and other != view and cleared == [[], ""]
    assert note == error_or_note("40 points. Drag to turn, wheel to zoom.")


def test_a_file_that_cannot_be_opened_changes_the_note_alone(chat_page, pipe, tmp_path):
    (tmp_path / "broken.ply").write_text("nothing")
    conversation, visit = Conversation(pipe), Visit()
    selected, view, error, *others = _open_upload(conversation, str(tmp_path / "broken.ply"))
    assert (selected, view, others) == (None, SAME, [SAME, SAME])
    assert 'class="error"' in error and "broken.ply: " in error
    found = task_page()._open_upload(visit, str(tmp_path / "broken.ply"), "", None)
    assert found == (None, SAME, error, SAME) and visit.cloud is None
    examples = ExampleShapes.__new__(ExampleShapes)
    examples._shapes, examples.names = {"chair": None}, ["chair"]
    for page, visitor, asked in (
        (DemoPage("tiny", examples, None), conversation, ()),
        (task_page(shapes=examples), visit, ("",)),
    ):
        view, error, *_ = page._open_example(visitor, None, *asked)
        assert view == SAME and error == error_or_note("no example ''; there are 1, such as ['chair']", is_error=True)


def test_without_examples_a_visit_begins_with_an_upload(pipe):
    conversation = Conversation(pipe)
    empty, *shown = DemoPage("tiny", NO_SHAPES, lambda: conversation)._begin()
    assert empty is conversation and shown == ["", error_or_note("Upload a file to talk about."), [], ""]
    visit, *shown = task_page(shapes=NO_SHAPES)._begin("", None, "")
    assert visit.cloud is None and shown == ["", error_or_note("Upload a file to start."), ""]
    assert task_page()._answer(visit, "") == (SAME, error_or_note("Choose a shape first.", is_error=True), SAME)


def parts(page):
    return {block.elem_id: block for block in page.blocks.values() if getattr(block, "elem_id", None)}


@pytest.mark.parametrize("task", [CHAT, WORDS])
def test_pages_keep_uploads_and_conversations_for_an_hour_and_tell_nobody(task, built):
    made = built(task)
    (state,) = [block for block in made.blocks.values() if isinstance(block, gr.State)]
    assert made.delete_cache == (3600, 3600) and state.time_to_live == 3600 and state.value is None
    assert not made.analytics_enabled and made.title.endswith("me/<model>")
    texts = [block.value for block in made.blocks.values() if isinstance(block, gr.Markdown)]
    assert "me/&lt;model&gt;" in texts[0] and "ply" in texts[1] and "Upload only what you may\nshare" in texts[1]
    (terms,) = [block for block in made.blocks.values() if isinstance(block, gr.Accordion)]
    assert not terms.open
    example = parts(made)["example"]
    assert example.value == "chair" and example.visible and example.allow_custom_value


@pytest.mark.parametrize(
    ("task", "visible"),
    [
        (WORDS, {"words", "again", "up_axis"}),
        ("point-cloud-segmentation", {"category", "up_axis"}),
        ("point-cloud-reconstruction", set()),
    ],
)
def test_pages_show_the_inputs_of_their_task(task, visible, built):
    shown = parts(built(task))
    assert {name for name in ("words", "category", "up_axis", "again") if shown[name].visible} == visible
    assert shown["words"].value == "chair, table, lamp, sofa, car, plant" and shown["words"].max_length == 1000
    assert shown["up_axis"].value == "" and [value for _, value in shown["up_axis"].choices] == ["", "x", "y", "z"]
    assert shown["up_axis"].choices[0][0] == "y, as in the model's training"
    assert [value for _, value in shown["category"].choices] == (["ship"] if "category" in visible else [])
    columns = [block.visible for block in built(task).blocks.values() if isinstance(block, gr.Column)]
    assert columns == [True, task != "point-cloud-reconstruction"]
    assert task_page(task, words=["a", "b"]).words == "a, b"


def test_where_the_model_cannot_answer_the_shape_is_shown_with_the_error(monkeypatch):
    def ask(*_):
        raise ValueError("too <long>")

    pages = []
    monkeypatch.setattr("hf_any3d.demo.task_pages.viewer_page", lambda views, **settings: pages.append(settings) or "")
    page, visit = task_page(ask=ask), Visit()
    visit.open(PointCloudData(np.eye(3), labels=np.array([0, 2, 1])))
    for up_axis in (None, "z"):
        view, error, answer = page._answer(visit, "", None, up_axis)
        assert "<iframe" in view and error == error_or_note("too <long>", is_error=True) and answer == ""
    assert pages == [{"title": "shape", "names": ["0", "1", "2"], "up_axis": up} for up in "yz"]


@pytest.mark.parametrize("task", [CHAT, WORDS])
def test_a_page_is_served_here_alone_and_limits_uploads_and_waiting_visitors(task, built, chat_page, monkeypatch):
    launched, waiting, warm = [], [], []
    monkeypatch.setattr(gr.Blocks, "launch", lambda page, **settings: launched.append((page, settings)))
    monkeypatch.setattr(gr.Blocks, "queue", lambda page, **settings: waiting.append(settings))
    monkeypatch.setattr(page_module, "warm_up", lambda: warm.append(True))
    made = chat_page if task == CHAT else task_page(task)
    monkeypatch.setattr(made, "build", lambda: built(task))
    assert made.open() is built(task)
    made.open("0.0.0.0", 7000, True)
    (_, settings), (_, public) = launched
    assert waiting == [{"max_size": 100}] * 2 and warm == [True, True]
    assert settings["max_file_size"] == LARGEST_UPLOAD and settings["prevent_thread_lock"]
    assert (settings["server_name"], settings["server_port"], settings["share"]) == ("127.0.0.1", None, False)
    assert (public["server_name"], public["server_port"], public["share"]) == ("0.0.0.0", 7000, True)
    assert settings["quiet"] and not settings["ssr_mode"] and settings["footer_links"] == []
    assert settings["css"] == page_module.STYLE and settings["theme"] is page_module.THEME

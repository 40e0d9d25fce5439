"""What the pages show and keep, without a browser."""

from functools import cache
from types import SimpleNamespace

import pytest

from hf_any3d.registry import TASKS
from hf_any3d.tasks.settings import settings_of
from tests.demo import gr, page, task_pages

SHAPES = SimpleNamespace(names=["chair"])
CHAT, WORDS = "chat", "zero-shot-point-cloud-classification"


@pytest.fixture(scope="module")
def built():
    """The page of a task as gradio has it; each is built once."""
    return cache(lambda task: (page.DemoPage("me/<model>", SHAPES, None) if task == CHAT else task_page(task)).build())


def task_page(task, words=()):
    model = SimpleNamespace(config=SimpleNamespace(id2label={0: "lamp"}))
    pipe = SimpleNamespace(up_axis="y", model=model, feature_extractor=SimpleNamespace(up_axis="y", columns=()))
    categories = ["ship"] if task == "point-cloud-segmentation" else []
    record = TASKS[task]
    settings = settings_of(record.settings, "demo")
    answers = SimpleNamespace(task=record, categories=categories, settings=settings, pipe=pipe)
    return task_pages.TaskPage("me/<model>", SHAPES, answers, words)


def parts(made):
    return {block.elem_id: block for block in made.blocks.values() if getattr(block, "elem_id", None)}


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
    assert {
        name for name in ("words", "category", "up_axis", "again") if name in shown and shown[name].visible
    } == visible
    if task != WORDS:
        return
    assert shown["words"].value == "chair, table, lamp, sofa, car, plant" and shown["words"].max_length == 1000
    assert shown["up_axis"].value == ""
    axes = ["", "x", "y", "z", "-x", "-y", "-z"]
    assert [value for _, value in shown["up_axis"].choices] == axes
    assert shown["up_axis"].choices[0][0] == "y, as in the model's training"
    columns = [block.visible for block in built(task).blocks.values() if isinstance(block, gr.Column)]
    assert columns == [True, task != "point-cloud-reconstruction"]
    assert task_page(task, words=["a", "b"]).words == "a, b"

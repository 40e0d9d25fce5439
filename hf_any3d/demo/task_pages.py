"""The demo of models that answer at once: classes, scores of words, parts, reconstructions, similar shapes.

`registration.task_of` returns the task of a model; `TaskPage` is the page of all tasks but chat, which has `DemoPage`.
What it asks for are the settings that the task has for this door, and what it shows is the view of the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from hf_any3d.data.example_shapes import ExampleShapes, first_known
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.files.point_cloud import MEASURED
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.demo.page import Page, error_or_note, shape_column, view_frame
from hf_any3d.demo.uploads import AT_ONCE, Uploads
from hf_any3d.registry import TASKS
from hf_any3d.tasks.poses import UPRIGHT
from hf_any3d.tasks.settings import Setting, settings_of
from hf_any3d.visualization.html_pages import html_fragment
from hf_any3d.visualization.show import view_of_cloud
from hf_any3d.visualization.viewer import CloudView, hex_color, viewer_page

MOST_POINTS = 100_000
"""Points that a model gets at most; of larger clouds a random sample is taken, which bounds time and memory."""
SECONDS = 120.0
"""Time limit of an answer."""
_QUESTIONS = ("labels", "category")
"""Settings that say what is asked."""
LONGEST_WORDS, MOST_WORDS = 1000, 50
"""Characters and labels of a question."""


@dataclass(frozen=True)
class Answer:
    """A model's answer about a shape.

    `clouds` are shown in 3D with `settings` of `viewer_page` and a note below; `rows` are labels with shares in
    [0, 1], the best first, and `colors` those of labels in the view, as "#rrggbb".
    """

    clouds: list[CloudView]
    settings: dict[str, Any]
    rows: list[tuple[str, float]]
    note: str
    colors: dict[str, str] = field(default_factory=dict)


class TaskAnswers:
    """Answers of a pipeline about shapes within so many seconds; without the page."""

    def __init__(self, task: str, pipe: Any, examples: ExampleShapes, seconds: float = SECONDS):
        self.task = TASKS[task]
        self.pipe = pipe
        self.examples = examples
        self.seconds = seconds
        self.settings = settings_of(self.task.settings, "demo")
        self._known: dict[str, Any] = {}  # what the task keeps of examples, by their names

    @property
    def categories(self) -> list[str]:
        """Names of the categories among which a part segmentation model needs to know the object's."""
        config = self.pipe.model.config
        several = "category" in self.settings and getattr(config, "num_categories", 0)
        # Categories without names are chosen by their numbers.
        return list(config.category_names or map(str, range(several))) if several else []

    def ask(self, cloud: PointCloudData, *, is_doubted: bool = True, **given: Any) -> Answer:
        """Answer for a cloud or mesh; `given` are settings of the task, of `labels` a text with commas.

        With `is_doubted` the note says why the answer may be wrong. Shapes of the package are whole and upright, so
        that doubts about them say nothing.
        """
        note = f"{len(cloud):,} points"
        # A mesh is sampled anyway, however many vertices it has.
        if len(cloud) > MOST_POINTS and not cloud.is_mesh:
            cloud = thinned(cloud, MOST_POINTS)
            note = f"{MOST_POINTS:,} of {note}, drawn at random"
        elif cloud.is_mesh and cloud.faces is not None:
            note = f"a mesh of {len(cloud.faces):,} faces, sampled on its surface"
        if "labels" in self.settings:
            given["labels"] = labels_of(given.get("labels") or "")
        # An empty choice of a page stands for none.
        values = {
            name: declared.default_at("demo") if given.get(name) in (None, "") else given[name]
            for name, declared in self.settings.items()
        }
        answers = self.task.answers_class()(self.pipe, self.task.settings, values, "demo", on_page=True)
        end = time.monotonic() + self.seconds

        def check(*_: Any) -> None:
            if time.monotonic() > end:
                raise ValueError(f"the answer takes more than {self.seconds:g} seconds; try a smaller cloud")

        def again(data: PointCloudData, axis: str) -> Any:
            return self.pipe(data, **{**arguments, "up_axis": axis})

        arguments = {**answers.arguments, **answers.for_doubts}
        # Long answers call the model block by block; pipelines offer no way to stop between blocks but a hook.
        with self.pipe.model.register_forward_pre_hook(check):
            result = self.pipe(cloud, **arguments)
            view = answers.view(cloud, result)
            doubt = answers.doubt(cloud, result, again) if is_doubted else None
            shares = list(view.shares)
            if answers.compares:
                # Results of examples are computed at the first question, and then kept.
                # At most 40, as the first visitor waits for all of them
                for name in self.examples.names[:40]:
                    if name not in self._known:
                        self._known[name] = self.pipe(self.examples.get(name))
                shares = answers.nearest(result, self._known)
        note = "; ".join([note, *([view.note] if view.note else []), *([str(doubt)] if doubt else [])])
        palette = {name: hex_color(color) for name, color in view.colors.items()}
        clouds = list(view.clouds)
        if not clouds:
            # As the model has seen it
            if view.up_axis is not None:
                cloud = replace(cloud, points=turn_up_axis(cloud.points, view.up_axis, answers.up_axis), up_axis=None)
            own, _ = view_of_cloud(cloud)
            own.labels, own.note = None, ""  # labels of the file are not the model's
            clouds = [own]
        return Answer(clouds, dict(view.settings), shares, note, palette)


class Visit(Uploads):
    """The shape of one visitor of the page."""

    def __init__(self, columns: Sequence[str] = ()) -> None:
        super().__init__(columns)
        self.cloud: PointCloudData | None = None
        self.is_shipped = False

    def open(self, source: Any) -> None:
        """Take a shape, a file of the examples, or the file that was read."""
        self.cloud = self.cloud_of(source)


class TaskPage(Page):
    """The page of a model that answers at once; each visitor has a shape, and answers are computed in turn."""

    def __init__(self, name: str, examples: ExampleShapes, answers: TaskAnswers, words: Sequence[str] = ()):
        super().__init__(name, examples, partial(Visit, answers.pipe.feature_extractor.columns))
        self.answers = answers
        # One that the model may know says more of it than any other.
        self.first = first_known(examples.names, answers.pipe.model.config.id2label.values())
        self.words = ", ".join(words or ("chair", "table", "lamp", "sofa", "car", "plant"))

    def build(self) -> gr.Blocks:
        """Build the page."""
        with self.frame(self.answers.task.question) as (page, visit):
            with gr.Row():
                with gr.Column(scale=6):
                    example, file, view, note = shape_column(self.examples, self.first)
                # Without anything to ask for, the view is the answer.
                with gr.Column(scale=5, visible=bool(self.answers.settings)):
                    # On a phone the answer is on the first screen, below what is asked and above settings of the file.
                    settings = self.answers.settings
                    widgets = {name: self._widget(settings[name]) for name in settings if name in _QUESTIONS}
                    again = gr.Button(
                        "Compare",
                        variant="primary",
                        visible="labels" in self.answers.settings,
                        elem_id="again",
                    )
                    answer = gr.HTML(elem_id="answer", label=self.answers.task.heading)
                    for name, declared in settings.items():
                        if name not in widgets:
                            widgets[name] = self._widget(declared)
            asked = [widgets[name] for name in settings]

            # Requests to the model share one queue; files are read in another one, so that slow ones delay nobody.
            in_turn = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
            files = {"concurrency_id": "files", "concurrency_limit": AT_ONCE, "api_visibility": "private"}
            shown = [view, note, answer]
            page.load(self.begin, asked, [visit, *shown], show_progress="hidden", **in_turn)
            example.input(self.open_example, [visit, example, *asked], shown, show_progress_on=view, **in_turn)
            file.upload(Visit.read, [visit, file], show_progress_on=view, **files).then(
                self.open_upload, [visit, file, *asked], [example, *shown], show_progress_on=view, **in_turn
            )
            gr.on(
                [again.click, *(widget.submit if hasattr(widget, "submit") else widget.input for widget in asked)],
                self._answer,
                [visit, *asked],
                shown,
                show_progress_on=answer,
                trigger_mode="once",
                **in_turn,
            )
        return page

    def show(self, visitor: Visit, source: Callable[[], Any], *asked: Any) -> tuple[Any, ...]:
        """Open a shape and answer; after an error only the line below the view changes."""
        try:
            shape = source()
            visitor.open(shape)
            visitor.is_shipped = self.examples.is_shipped(shape)
        except (ValueError, OSError, ImportError) as error:
            return gr.skip(), error_or_note(str(error), is_error=True), gr.skip()
        return self._answer(visitor, *asked)

    def _widget(self, declared: Setting) -> Any:
        """Build what a visitor chooses a setting with."""
        name = declared.name
        if name == "labels":
            return gr.Textbox(
                self.words, label="Words, separated by commas", max_length=LONGEST_WORDS, elem_id="words"
            )
        if name == "category":
            categories = self.answers.categories
            return gr.Dropdown(categories, label="Kind of object", visible=bool(categories), elem_id="category")
        if name == "up_axis":
            pipe = self.answers.pipe
            is_found = getattr(pipe.model.config, "expected_pose", None) == UPRIGHT
            usual = "as the object looks" if is_found else f"{pipe.up_axis}, as in the model's training"
            label = "Up axis of the file"
            return gr.Dropdown([(usual, ""), *declared.words], value="", label=label, elem_id="up_axis")
        default = declared.default_at("demo")
        named: dict[str, Any] = {"label": declared.help, "elem_id": name}
        if declared.type is bool:
            return gr.Checkbox(bool(default), **named)
        if words := declared.words:
            return gr.Dropdown([("as usual", ""), *words], value="" if default is None else default, **named)
        if declared.is_number:
            return gr.Number(default, minimum=declared.low, maximum=declared.high, **named)
        return gr.Textbox(default, **named)

    def _answer(self, visit: Visit, *asked: Any) -> tuple[Any, ...]:
        """Return updates of the view, the line below it and the answer."""
        # An event of the page can come before its first shape is opened.
        if visit.cloud is None:
            return gr.skip(), error_or_note("Choose a shape first.", is_error=True), gr.skip()
        given = dict(zip(self.answers.settings, asked, strict=True))
        shown_up = (given.get("up_axis") or self.answers.pipe.up_axis).removeprefix("-")
        try:
            answer = self.answers.ask(visit.cloud, is_doubted=not visit.is_shipped, **given)
        except (ValueError, OSError) as error:
            # After an error the shape is shown as it is in the file.
            view, names = view_of_cloud(visit.cloud)
            page = viewer_page([view], title="shape", names=names, up_axis=shown_up)
            return view_frame(page), error_or_note(str(error), is_error=True), ""
        page = viewer_page(answer.clouds, title="shape", up_axis=shown_up, **answer.settings)
        return (
            view_frame(page),
            error_or_note(f"{answer.note}. Drag to turn, wheel to zoom."),
            bars(self.answers.task.heading, answer.rows, answer.colors),
        )


def bars(heading: str, rows: Sequence[tuple[str, float]], colors: Mapping[str, str] | None = None) -> str:
    """Return labels with their shares as a list of bars, perhaps in the labels' colors; texts are escaped."""
    return html_fragment("bars", heading, rows, colors or {}) if rows else ""


def thinned(cloud: PointCloudData, most: int) -> PointCloudData:
    """Return a random sample of a cloud without faces."""
    # The same sample for every question about a cloud; sorted, so that points keep their order.
    kept = np.sort(np.random.default_rng(0).choice(len(cloud), most, replace=False))
    arrays = {name: getattr(cloud, name) for name in ("points", "colors", "normals", "labels", *MEASURED)}
    # What the file says of the cloud as a whole, such as its up axis, stays.
    return replace(cloud, **{name: array[kept] for name, array in arrays.items() if array is not None})


def labels_of(words: str) -> list[str]:
    """Return the labels in a text with commas, each once."""
    labels = list(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    if not 0 < len(labels) <= MOST_WORDS or len(words) > LONGEST_WORDS:
        most = f"{MOST_WORDS}, {LONGEST_WORDS:,} characters in all"
        raise ValueError(f"{len(labels)} words; expected some, separated by commas, at most {most}")
    return labels

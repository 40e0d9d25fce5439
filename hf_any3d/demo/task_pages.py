"""The demo of models that answer at once: classes, scores of words, parts, reconstructions, similar shapes.

`registration.task_of` returns the task of a model; `TaskPage` is the page of all tasks but chat, which has `DemoPage`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from hf_any3d.data.files import PointCloudData
from hf_any3d.data.files.point_cloud import MEASURED
from hf_any3d.data.no_object import why_no_object
from hf_any3d.demo.page import ExampleShapes, Page, error_or_note, shape_column, view_frame
from hf_any3d.demo.uploads import AT_ONCE, Uploads
from hf_any3d.registry import NONE_OF_THESE
from hf_any3d.visualization.html_pages import html_fragment
from hf_any3d.visualization.show import view_of_cloud
from hf_any3d.visualization.viewer import LOWEST_BOX, BoxView, CloudView, hex_color, label_colors, viewer_page

CHAT = "point-cloud-text-to-text"
FEATURES = "point-cloud-feature-extraction"
MOST_POINTS = 100_000
"""Points that a model gets at most; of larger clouds a random sample is taken, which bounds time and memory."""
SECONDS = 120.0
"""Time limit of an answer."""
MOST_SHOWN = 8
_BOX_THRESHOLD = 0.5
LONGEST_WORDS, MOST_WORDS = 1000, 50
"""Characters and labels of a zero-shot question."""
Pipe = Callable[..., Any]
"""A pipeline, or one with arguments."""
_TITLES = {
    "point-cloud-classification": ("What is this?", "Classes"),
    "zero-shot-point-cloud-classification": ("Which of your words fits best?", "Words"),
    "point-cloud-segmentation": ("What are its parts?", "Parts"),
    "zero-shot-point-cloud-segmentation": ("Where are the parts that your words name?", "Parts"),
    "point-cloud-object-detection": ("Where are the objects?", "Objects"),
    "point-cloud-reconstruction": ("What does the autoencoder keep?", "Reconstruction"),
    FEATURES: ("Which shapes are similar?", "Most similar examples, by the cosine of their features"),
}


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
        self.task = task
        self.pipe = pipe
        self.examples = examples
        self.seconds = seconds
        self._features: dict[str, np.ndarray] = {}

    @property
    def categories(self) -> list[str]:
        """Names of the categories among which a part segmentation model needs to know the object's."""
        config = self.pipe.model.config
        several = self.task == "point-cloud-segmentation" and getattr(config, "num_categories", 0)
        # Categories without names are chosen by their numbers.
        return list(config.category_names or map(str, range(several))) if several else []

    @property
    def turns(self) -> bool:
        """True if the pipeline turns clouds with another axis that points up."""
        return self.task != "point-cloud-reconstruction"

    def ask(
        self, cloud: PointCloudData, words: str = "", category: str | None = None, up_axis: str | None = None
    ) -> Answer:
        """Answer for a cloud or mesh; `words` are labels with commas, for models that find what is named."""
        note = f"{len(cloud):,} points"
        # A mesh is sampled anyway, however many vertices it has.
        if len(cloud) > MOST_POINTS and not cloud.is_mesh:
            cloud = thinned(cloud, MOST_POINTS)
            note = f"{MOST_POINTS:,} of {note}, drawn at random"
        elif cloud.is_mesh and cloud.faces is not None:
            note = f"a mesh of {len(cloud.faces):,} faces, sampled on its surface"
        # A model of single objects answers about whole scenes, too, as if they were one.
        if getattr(self.pipe, "of_objects", False):
            reason = why_no_object(cloud, up_axis or self.pipe.feature_extractor.up_axis, self.pipe.model.config)
            note += "" if reason is None else f"; {reason}"
        pipe = partial(self.pipe, up_axis=up_axis) if up_axis else self.pipe
        end = time.monotonic() + self.seconds

        def check(*_: Any) -> None:
            if time.monotonic() > end:
                raise ValueError(f"the answer takes more than {self.seconds:g} seconds; try a smaller cloud")

        # Long answers call the model block by block; pipelines offer no way to stop between blocks but a hook.
        with self.pipe.model.register_forward_pre_hook(check):
            # The method that has the name of the task
            answer = getattr(self, f"_{self.task.replace('-', '_')}")
            return answer(pipe, cloud, note, words=words, category=category)

    def _view(self, cloud: PointCloudData) -> list[CloudView]:
        view, _ = view_of_cloud(cloud)
        view.labels, view.note = None, ""  # labels of the file are not the model's
        return [view]

    def _point_cloud_classification(self, pipe: Pipe, cloud: PointCloudData, note: str, **_: Any) -> Answer:
        labels = pipe(cloud, top_k=MOST_SHOWN)
        if self.pipe.model.config.problem_type == "regression":  # its numbers are no shares
            numbers = ", ".join(f"{one['label']} {one['score']:.6g}" for one in labels)
            return Answer(self._view(cloud), {}, [], f"{note}; {numbers}")
        # A label of None stands for none of the classes.
        rows = [(one["label"] or NONE_OF_THESE, one["score"]) for one in labels]
        return Answer(self._view(cloud), {}, rows, note)

    def _zero_shot_point_cloud_classification(
        self, pipe: Pipe, cloud: PointCloudData, note: str, words: str, **_: Any
    ) -> Answer:
        labels = pipe(cloud, candidate_labels=_labels(words))
        return Answer(self._view(cloud), {}, [(one["label"], one["score"]) for one in labels], note)

    def _point_cloud_segmentation(
        self, pipe: Pipe, cloud: PointCloudData, note: str, category: str | None, **_: Any
    ) -> Answer:
        config = self.pipe.model.config
        names = [str(config.id2label[number]) for number in range(config.num_labels)]
        answer = pipe(cloud, **({"category": category} if self.categories else {}))
        return self._parts(cloud, answer, names, note)

    def _zero_shot_point_cloud_segmentation(
        self, pipe: Pipe, cloud: PointCloudData, note: str, words: str, **_: Any
    ) -> Answer:
        names = _labels(words)
        return self._parts(cloud, pipe(cloud, candidate_labels=names), list(self.pipe.label_names(names)), note)

    def _parts(self, cloud: PointCloudData, answer: dict[str, Any], names: list[str], note: str) -> Answer:
        labels = answer["labels"]
        # Labels of a mesh are those of samples, which are others than the vertices.
        colors = cloud.colors if cloud.colors is not None and len(cloud.colors) == len(labels) else None
        view = CloudView(np.asarray(answer["points"]), colors=colors, labels=labels)
        rows = [(part["label"], float(part["mask"].mean())) for part in answer["segments"]]
        palette = {name: hex_color(color) for name, color in zip(names, label_colors(len(names)), strict=True)}
        return Answer([view], {"names": names, "label_name": "part"}, rows, note, palette)

    def _point_cloud_object_detection(self, pipe: Pipe, cloud: PointCloudData, note: str, **_: Any) -> Answer:
        if cloud.is_mesh:
            # Detectors take points, and as many are shown around the boxes.
            cloud = cloud.sample_surface(MOST_POINTS // 10)
        # The page's slider shows boxes with lower scores, too.
        detections = pipe(cloud, threshold=LOWEST_BOX) if self.pipe.has_scores else pipe(cloud)
        # A model that writes labels may write others than those of its training.
        names = list(dict.fromkeys([*self.pipe.labels, *(one["label"] for one in detections)]))
        boxes = [BoxView(np.asarray(one["box"]["corners"]), one["label"], one["score"]) for one in detections]
        # Boxes are in the coordinates of the file.
        points = cloud.points if cloud.offset is None else cloud.points + cloud.offset
        palette = {name: hex_color(color) for name, color in zip(names, label_colors(len(names)), strict=True)}
        # Only boxes that the slider shows at first are listed.
        rows = [(one["label"], one["score"]) for one in detections if (one["score"] or 0) >= _BOX_THRESHOLD]
        # Models that write boxes give no scores.
        if counts := Counter(one["label"] for one in detections if one["score"] is None):
            note = f"{note}; {', '.join(f'{label} {count}' for label, count in counts.items())}"
        view = CloudView(points, colors=cloud.colors, boxes=boxes)
        return Answer([view], {"box_names": names, "threshold": _BOX_THRESHOLD}, rows, note, palette)

    def _point_cloud_reconstruction(self, pipe: Pipe, cloud: PointCloudData, note: str, **_: Any) -> Answer:
        answer = pipe(cloud)
        clouds = [
            CloudView(answer[key], title=title)
            for key, title in (("points", "input"), ("reconstruction", "reconstruction"))
        ]
        scores = f"Chamfer distance (L1) {answer['chamfer_l1']:.4f}, F-score {answer['f_score']:.2f}"
        # How many of the autoencoder's codes the shape needs
        codes = len(np.unique(answer["token_ids"]))
        note = f"{note}; {scores}; {codes} different codes of {len(answer['token_ids'])} patches"
        return Answer(clouds, {"columns": 2, "rows_share_frame": True}, [], note)

    def _point_cloud_feature_extraction(self, pipe: Pipe, cloud: PointCloudData, note: str, **_: Any) -> Answer:
        # Features of examples are computed at the first question, and then kept.
        features_of_cloud = _unit(pipe(cloud)["pooled"])
        # At most 40, as the first visitor waits for all of them
        for name in self.examples.names[:40]:
            if name not in self._features:
                self._features[name] = _unit(self.pipe(self.examples.get(name))["pooled"])
        # Features are unit vectors, so their product is the cosine.
        scores = {name: float(features_of_cloud @ features) for name, features in self._features.items()}
        rows = sorted(scores.items(), key=lambda item: -item[1])[:MOST_SHOWN]
        return Answer(self._view(cloud), {}, rows, note)


class Visit(Uploads):
    """The shape of one visitor of the page."""

    def __init__(self, columns: Sequence[str] = ()) -> None:
        super().__init__(columns)
        self.cloud: PointCloudData | None = None

    def open(self, source: Any) -> None:
        """Take a shape, a file of the examples, or the file that was read."""
        self.cloud = self.cloud_of(source)


class TaskPage(Page):
    """The page of a model that answers at once; each visitor has a shape, and answers are computed in turn."""

    def __init__(self, name: str, examples: ExampleShapes, answers: TaskAnswers, words: Sequence[str] = ()):
        super().__init__(name, examples, partial(Visit, answers.pipe.feature_extractor.columns))
        self.answers = answers
        self.words = ", ".join(words or ("chair", "table", "lamp", "sofa", "car", "plant"))

    def build(self) -> gr.Blocks:
        """Build the page."""
        question, heading = _TITLES[self.answers.task]
        with self.frame(question) as (page, visit):
            with gr.Row():
                with gr.Column(scale=6):
                    example, file, view, note = shape_column(self.examples)
                with gr.Column(scale=5, visible=self.answers.task != "point-cloud-reconstruction"):
                    words = gr.Textbox(
                        self.words,
                        label="Words, separated by commas",
                        visible=self.answers.task.startswith("zero-shot"),
                        max_length=LONGEST_WORDS,
                        elem_id="words",
                    )
                    category = gr.Dropdown(
                        self.answers.categories,
                        label="Kind of object",
                        visible=bool(self.answers.categories),
                        elem_id="category",
                    )
                    up_axis = gr.Dropdown(
                        [(f"{self.answers.pipe.feature_extractor.up_axis}, as in the model's training", ""), *"xyz"],
                        value="",
                        label="Axis that points up in the file",
                        visible=self.answers.turns,
                        elem_id="up_axis",
                    )
                    again = gr.Button(
                        "Compare",
                        variant="primary",
                        visible=self.answers.task.startswith("zero-shot"),
                        elem_id="again",
                    )
                    answer = gr.HTML(elem_id="answer", label=heading)

            # Requests to the model share one queue; files are read in another one, so that slow ones delay nobody.
            in_turn = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
            files = {"concurrency_id": "files", "concurrency_limit": AT_ONCE, "api_visibility": "private"}
            asked = [words, category, up_axis]
            shown = [view, note, answer]
            page.load(self.begin, asked, [visit, *shown], show_progress="hidden", **in_turn)
            example.input(self.open_example, [visit, example, *asked], shown, show_progress_on=view, **in_turn)
            file.upload(Visit.read, [visit, file], show_progress_on=view, **files).then(
                self.open_upload, [visit, file, *asked], [example, *shown], show_progress_on=view, **in_turn
            )
            gr.on(
                [words.submit, again.click, category.input, up_axis.input],
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
            visitor.open(source())
        except (ValueError, OSError, ImportError) as error:
            return gr.skip(), error_or_note(str(error), is_error=True), gr.skip()
        return self._answer(visitor, *asked)

    def _answer(
        self, visit: Visit, words: str | None, category: str | None = None, up_axis: str | None = None
    ) -> tuple[Any, ...]:
        """Return updates of the view, the line below it and the answer."""
        # An event of the page can come before its first shape is opened.
        if visit.cloud is None:
            return gr.skip(), error_or_note("Choose a shape first.", is_error=True), gr.skip()
        shown_up = up_axis or self.answers.pipe.up_axis
        try:
            answer = self.answers.ask(visit.cloud, words or "", category, up_axis)
        except (ValueError, OSError) as error:
            # After an error the shape is shown as it is in the file.
            view, names = view_of_cloud(visit.cloud)
            page = viewer_page([view], title="shape", names=names, up_axis=shown_up)
            return view_frame(page), error_or_note(str(error), is_error=True), ""
        page = viewer_page(answer.clouds, title="shape", up_axis=shown_up, **answer.settings)
        heading = _TITLES[self.answers.task][1]
        return (
            view_frame(page),
            error_or_note(f"{answer.note}. Drag to turn, wheel to zoom."),
            bars(heading, answer.rows, answer.colors),
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


def _labels(words: str) -> list[str]:
    """Return the labels in a text with commas, each once."""
    labels = list(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    if not 0 < len(labels) <= MOST_WORDS or len(words) > LONGEST_WORDS:
        most = f"{MOST_WORDS}, {LONGEST_WORDS:,} characters in all"
        raise ValueError(f"{len(labels)} words; expected some, separated by commas, at most {most}")
    return labels


def _unit(features: np.ndarray) -> np.ndarray:
    return features / max(float(np.linalg.norm(features)), 1e-12)

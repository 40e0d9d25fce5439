"""Pipelines of models that write layouts of rooms: as boxes of a detector, and as text."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import AutoProcessor, GenerationConfig, LogitsProcessorList, TextIteratorStreamer

from hf_any3d.data.frames.room_voxels import VoxelizedRoom
from hf_any3d.data.frames.scan_frames import frame_parts
from hf_any3d.data.inputs import to_cloud
from hf_any3d.data.options import one_of
from hf_any3d.modeling.layers.boxes import UP_AXES, DetectionRule
from hf_any3d.modeling.layers.layouts import DroppedLine, Layout, Wall, read_lines
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.modeling.spatiallm import SpatialLMConfig
from hf_any3d.processing.chat_messages import is_conversation, take_clouds
from hf_any3d.processing.rooms import TASKS, SpatialLMProcessor
from hf_any3d.tasks.base import PointCloudPipeline, specialize
from hf_any3d.tasks.chat.generation import streamed, take_generation
from hf_any3d.tasks.chat.pipeline import PointCloudTextToTextPipeline
from hf_any3d.tasks.detection.pipeline import PointCloudObjectDetectionPipeline, Scan
from hf_any3d.tasks.steps import refuse_unknown, stem_of, without_none
from hf_any3d.tasks.zero_shot_classification.pipeline import as_labels

logger = logging.getLogger(__name__)

# Points that are drawn on the surface of a mesh, and the axis of heights in the model's frame.
_MESH_POINTS = 200_000
_UP = "z"


@dataclass
class Request:
    """A scan, also as voxels in the model's frame, with what is asked about it, and the answers once there are any.

    `classes` are objects to look for, none for all. Of the answers, `are_whole` tells which ended by themselves, and
    `counts` how many tokens they have, their ends included.
    """

    room: VoxelizedRoom
    scan: Scan
    task: str
    classes: tuple[str, ...]
    texts: Sequence[str] = ()
    are_whole: Sequence[bool] = ()
    counts: Sequence[int] = ()


class _LayoutPipeline(PointCloudPipeline):
    """Base of both pipelines, before that of the task."""

    processor: SpatialLMProcessor
    # One processor reads scans and texts, so that there is no feature extractor beside it.
    _load_feature_extractor = False
    _pipeline_calls_generate = True
    # Used by transformers for what neither the call nor the model's own settings say.
    _default_generation_config = GenerationConfig(max_new_tokens=4096, do_sample=False)
    usual_task: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any):
        # Not by the base class of the task, which has another processor.
        PointCloudPipeline.__init__(self, *args, **kwargs)
        if self.processor is None:  # opening it again tells why it cannot be opened
            self.processor = AutoProcessor.from_pretrained(self.model.name_or_path)

    @property
    def up_axis(self) -> str:
        """The axis that points up in what the model sees."""
        return _UP

    def _split_arguments(self, kwargs: dict[str, Any], expected: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the arguments of `preprocess` and of `generate`."""
        # Taken out one after the other, so that what is left is unknown.
        arguments = {name: kwargs.pop(name, None) for name in ("task", "candidate_labels", "up_axis", "align")}
        grammar = without_none(grammar=kwargs.pop("grammar", None))
        generation = take_generation(kwargs)
        expected += "stop_sequence, generate_kwargs, arguments of generate"
        refuse_unknown(kwargs, f"task, candidate_labels, up_axis, align, grammar, {expected}")
        # Checked here, so that a wrong word is an error before any scan is read.
        if arguments["up_axis"] is not None:
            one_of("up_axis", arguments["up_axis"], UP_AXES)
        if arguments["align"] is not None:
            frame_parts(arguments["align"])
        if arguments["task"] is not None:
            one_of("task", arguments["task"], tuple(TASKS))
        if arguments["candidate_labels"] is not None:
            labels = as_labels(arguments["candidate_labels"])
            self.processor.check_classes(labels, arguments["task"] or self.usual_task, argument="candidate_labels")
            arguments["candidate_labels"] = labels
        return without_none(**arguments), generation | grammar

    def request(
        self,
        cloud: Any,
        task: str | None = None,
        candidate_labels: Sequence[str] = (),
        up_axis: str | None = None,
        align: bool | str | Sequence[str] | None = None,
    ) -> Request:
        """Read a scan, align and clean it; a mesh is sampled on its surface."""
        data = to_cloud(cloud, ("xyz", "rgb"))
        if data.is_mesh:
            data = data.sample_surface(_MESH_POINTS, 0)
        # A list of one scan gives a list of one room.
        (room,) = self.processor.read(data, align=align, up_axis=up_axis)
        # Boxes are answered in the frame of the file, whose up axis the processor was told or has found.
        scan = Scan(data, stem_of(cloud), _UP if room.frame is None else room.frame.up_axis)
        # A frame that was guessed changes what the model sees, which people should know.
        if room.frame is not None and room.frame.is_changed and room.frame.sentences:
            logger.warning("%s: %s", scan.stem or "scan", "; ".join(room.frame.sentences))
        return Request(room, scan, task or self.usual_task, tuple(candidate_labels))

    def _answer(self, requests: list[Request], generation: dict[str, Any]) -> list[Request]:
        """Let the model write; all requests ask the same."""
        generation = dict(generation)
        in_grammar = generation.pop("grammar", False)
        # A batch has one task and one list of classes; its callers see to that.
        rooms = [request.room for request in requests]
        first = requests[0]
        inputs = self.processor(rooms, task=first.task, classes=first.classes).to(self.device)
        pad = {"pad_token_id": self.processor.tokenizer.pad_token_id}
        generation.setdefault("tokenizer", self.processor.tokenizer)  # which finds `stop_strings`
        settings = self._prepare_generate_kwargs(generation, return_dict_in_generate=False, **pad)
        if in_grammar:
            # The grammar begins no line that could not end in time, so that it needs the limits of `generate`.
            limits = {
                name: settings.get(name, getattr(self.model.generation_config, name, None))
                for name in ("max_new_tokens", "eos_token_id")
            }
            limiters = self.processor.grammar(first.task, first.classes, **limits)
            settings["logits_processor"] = LogitsProcessorList([*(settings.get("logits_processor") or ()), *limiters])
        with evaluation_mode(self.model):
            # (batch, tokens) of the answers alone, without the prompt
            tokens = self.model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.answer_texts(tokens)
        ends = settings.get("eos_token_id")
        # Settings of the call win over those of the model; either may be a number, a list or missing.
        ends = self.model.generation_config.eos_token_id if ends is None else ends
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        # (batch, tokens)
        at_end = torch.isin(tokens, torch.tensor(ends, device=tokens.device))
        whole = at_end.any(dim=1).tolist()
        # Behind its end, a row is filled up.
        counts = torch.where(at_end.any(dim=1), at_end.int().argmax(dim=1) + 1, tokens.shape[1]).tolist()
        # With num_return_sequences, a request has several answers, one after the other.
        each = len(texts) // len(requests)
        return [
            dataclasses.replace(
                request,
                texts=texts[each * number : each * (number + 1)],
                are_whole=whole[each * number : each * (number + 1)],
                counts=counts[each * number : each * (number + 1)],
            )
            for number, request in enumerate(requests)
        ]

    def layouts(self, request: Request) -> list[Layout]:
        """Parse answers to layouts in the frame and unit of the scan, and warn about lines that were lost."""
        layouts = []
        for text, is_whole in zip(request.texts, request.are_whole, strict=True):
            layout = Layout.parse(text)
            about = f"the answer for {request.scan.stem!r}" if request.scan.stem else "the answer"
            if not is_whole:
                warnings.warn(f"{about} was cut off before its end; raise max_new_tokens", stacklevel=2)
            if layout.dropped:
                first = layout.dropped[0]
                warnings.warn(
                    f"{about} has {len(layout.dropped)} lines that are no walls, doors, windows or boxes, the first "
                    f"{first.text!r:.60}: {first.reason}; they were left out",
                    stacklevel=2,
                )
            layouts.append(self.processor.in_frame(layout, request.room))
        return layouts

    def written(self, cloud: Any, **kwargs: Any) -> Iterator[tuple[Request, Layout]]:
        """Yield the entities of a scan as soon as their lines are written, each in a layout of its own.

        A layout holds the walls that were written before, too, as doors and windows refer to them; the entity is the
        last one of its kind. Closing the iterator stops the model.
        """
        # As a call merges them: arguments of the pipeline, below those of this call.
        before, generation, _ = self._sanitize_parameters(**kwargs)
        request = self.request(cloud, **{**self._preprocess_params, **before})
        for layout in self.entities(request, {**self._forward_params, **generation}):
            yield request, layout

    def entities(self, request: Request, generation: Mapping[str, Any]) -> Generator[Layout, None, Request]:
        """Yield the entities of a scan that was read as in `written`, and return the request with its answer."""
        generation = dict(generation)
        stops = generation.pop("stopping_criteria", ())
        # Filled when the model has ended, which is when the last piece was read.
        answered: list[Request] = []

        def generate(**further: Any) -> list[Request]:
            # Gradients are switched off for each thread, and this runs in one of its own.
            with torch.no_grad():
                return self._answer([request], generation | further)

        streamer: Any = TextIteratorStreamer(
            self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

        def pieces() -> Iterator[str]:
            # `streamed` returns the answered requests after its last piece.
            answered.extend((yield from streamed(generate, streamer, stops)))

        walls: list[Wall] = []
        lines = map(self.processor.without_marks, _lines(pieces()))
        for entity in read_lines(lines):
            if isinstance(entity, DroppedLine):
                # A line without sense costs itself alone; the lines behind it are read.
                warnings.warn(f"{entity.text!r:.60} was left out: {entity.reason}", stacklevel=2)
                continue
            if isinstance(entity, Wall):
                walls.append(entity)
                yield self.processor.in_frame(Layout.of([entity]), request.room)
            else:
                yield self.processor.in_frame(Layout.of([*walls, entity]), request.room)
        return answered[0]


class LayoutDetectionPipeline(_LayoutPipeline, PointCloudObjectDetectionPipeline):
    """Find objects, walls, doors and windows in scans, with a model that writes layouts.

    `pipeline("point-cloud-object-detection")` is one of these for a SpatialLM. It takes what the pipeline takes for
    other detectors, in meters and with colors where there are any, and returns boxes of the same form, in the order
    in which they were written. Their `score` is None, as the model has none; walls, doors and windows are boxes along
    the wall, as thick as the wall.

    Arguments of a call, besides those of `generate` (`max_new_tokens`, `num_beams`, …) except `top_k`:

    - `task`: "objects" by default, "layout" for walls, doors and windows, "all" for both.
    - `candidate_labels`: objects to look for, of the classes that the model knows.
    - `align`: whether the up axis, a tilt, the unit, the floor and the turn of the walls are found and changed for the
      model, or which of them ("up_axis,level,unit,floor,turn"), by default as the processor does; boxes are in the
      frame and unit of the scan all the same, and their corners are tilted with it.
    - `grammar`: whether the model can write nothing else than well-formed layouts; False by default.
    - `up_axis`: the axis that points up in the clouds, with a minus for the other direction, if it need not be found.

    Settings of other detectors that choose among boxes by their scores are refused unless they have their defaults.
    `stream` yields boxes as they are written.
    """

    has_scores = False
    usual_task = "objects"
    _non_generation_params = ("top_k",)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        # Programs for any detector give these settings along; here only their defaults make sense.
        usual = dataclasses.asdict(DetectionRule()) | {"num_return_sequences": 1}
        chosen = {name: kwargs.pop(name) for name in usual if name in kwargs}
        if wrong := [f"{name}={value!r}" for name, value in chosen.items() if value != usual[name]]:
            reason = f"{type(self.model).__name__} writes boxes without scores, in one list"
            raise ValueError(f"{', '.join(wrong)}: {reason}; expected the default")
        before, generation = self._split_arguments(kwargs, "")
        return before, generation, {}

    @property
    def labels(self) -> list[str]:
        """Words for walls and openings, and the objects that the model knows."""
        return ["wall", "door", "window", *self.processor.classes]

    def preprocess(self, cloud: Any, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Prepare a scan, all at once."""
        # One part, as the pipeline of other detectors may cut a scan into several.
        yield {"request": self.request(cloud, **arguments), "is_last": True}

    def _forward(self, model_inputs: dict[str, Any], **generation: Any) -> dict[str, Any]:
        requests = model_inputs["request"]
        # A list from a batch, and a single one without.
        requests = requests if isinstance(requests, list) else [requests]
        return {"request": self._answer(requests, generation), "is_last": model_inputs["is_last"]}

    def postprocess(self, outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the boxes of one scan."""
        request = outputs[-1]["request"]
        request = request[0] if isinstance(request, list) else request
        (layout,) = self.layouts(request)
        return self._boxes(layout)

    def _boxes(self, layout: Layout) -> list[dict[str, Any]]:
        # (boxes, 7): center, size and heading; corners are (boxes, 8, 3).
        boxes, labels = layout.as_boxes()
        places = zip(labels, boxes.tolist(), layout.corners().tolist(), strict=True)
        return [
            {
                "label": label,
                "score": None,
                "box": {"center": box[:3], "size": box[3:6], "heading": box[6], "corners": corners},
            }
            for label, box, corners in places
        ]

    def stream(self, cloud: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:
        """Yield the boxes of one scan as soon as their lines are written; arguments are those of a call."""
        for _, layout in self.written(cloud, **kwargs):
            # Before it stand the walls that doors and windows refer to.
            yield self._boxes(layout)[-1]


class LayoutTextPipeline(_LayoutPipeline, PointCloudTextToTextPipeline):
    """Write the layouts of scanned rooms as text.

    `pipeline("point-cloud-text-to-text")` is one of these for a SpatialLM. It takes a scan, a list, generator or
    dataset column of them, or messages with a scan and one of the model's instructions, such as "Detect boxes.", and
    returns for each a list of `num_return_sequences` dicts: `generated_text`, a line for each wall, door, window and
    box, in the frame and unit of the scan; `layout`, the same as lists by kind; `dropped`, lines of the answer that
    could not be read, with the reason; and `frame`, what was found of the scan's frame, a sentence each.

    Arguments of a call, besides those of `generate`:

    - `task`: "all" by default, "layout" for walls, doors and windows, "objects" for boxes around objects.
    - `candidate_labels`: objects to look for, of the classes that the model knows.
    - `align`, `up_axis`, `grammar`: as of the pipeline for boxes; `up_axis` of `layout` is the axis of heights.

    The model answers no questions. `stream` yields lines as they are written.
    """

    usual_task = "all"

    def _sanitize_parameters(self, text: str | None = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        if text is not None:
            kwargs["task"] = _task_of(text)
        before, generation = self._split_arguments(kwargs, "text, ")
        return before, generation, {}

    def __call__(self, inputs: Any, text: str | None = None, **kwargs: Any) -> Any:
        """Write the layout of one scan or many; see the class."""
        # A list of messages would be taken for a list of scans.
        if is_conversation(inputs):
            inputs = {"messages": inputs}
        return PointCloudPipeline.__call__(self, inputs, **kwargs, **without_none(text=text))

    def preprocess(self, inputs: Any, **arguments: Any) -> dict[str, Any]:
        """Prepare one scan."""
        # A conversation comes as an object of transformers, as a row of a dataset, or as a list of messages.
        messages: Any = getattr(inputs, "messages", None)
        if isinstance(inputs, Mapping) and "messages" in inputs:
            messages = inputs["messages"]
        elif is_conversation(inputs):
            messages = inputs
        if messages is not None:
            inputs, task = scan_of_messages(messages)
            arguments |= without_none(task=task)
        elif isinstance(inputs, Mapping) and inputs.get("text") is not None:
            arguments |= {"task": _task_of(inputs["text"])}
            inputs = {name: value for name, value in inputs.items() if name != "text"}
        return {"request": self.request(inputs, **arguments)}

    def _forward(self, model_inputs: dict[str, Any], **generation: Any) -> dict[str, list[Request]]:
        requests = model_inputs["request"]
        # A list from a batch, and a single one without.
        requests = requests if isinstance(requests, list) else [requests]
        if len({(request.task, request.classes) for request in requests}) > 1:  # of messages
            return {"request": [answered for one in requests for answered in self._answer([one], generation)]}
        return {"request": self._answer(requests, generation)}

    def postprocess(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the layouts of one scan."""
        request = outputs["request"]
        request = request[0] if isinstance(request, list) else request
        frame = request.room.frame
        remarks = [] if frame is None else [*frame.sentences, *frame.warnings]
        answers = []
        for layout in self.layouts(request):
            dropped = [dataclasses.asdict(line) for line in layout.dropped]
            text = {"generated_text": layout.write(), "layout": layout.to_dict()}
            answers.append({**text, "dropped": dropped, "frame": remarks})
        return answers

    def stream(self, cloud: Any, **kwargs: Any) -> Iterator[str]:
        """Yield the lines of one scan's layout as soon as they are written; arguments are those of a call."""
        for _, layout in self.written(cloud, **kwargs):
            yield last_line(layout)


def last_line(layout: Layout) -> str:
    """Return the line of the entity that `written` yields a layout for."""
    return layout.write().rpartition("\n")[2]


def _task_of(text: str) -> str:
    """Return the task of an instruction."""
    # With its period or without, or the name of a task alone.
    words = text.strip().rstrip(".")
    task = next((task for task, instruction in TASKS.items() if words in (task, instruction.rstrip("."))), None)
    if task is None:
        instructions = ", ".join(map(repr, TASKS.values()))
        reason = "the model writes layouts and answers no questions"
        raise ValueError(f"text={text!r:.80}: {reason}; expected {instructions}")
    return task


def scan_of_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[Any, str | None]:
    """Return the cloud of a conversation, and the task that it asks for."""
    plain, clouds = take_clouds(messages, complete=True)
    if len(plain) != 1 or len(clouds) != 1:
        raise ValueError(f"{len(plain)} messages with {len(clouds)} scans; expected one message with one scan")
    texts = [part["text"] for part in plain[0]["content"] if part["type"] == "text"]
    return clouds[0], _task_of(" ".join(texts)) if texts else None


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Yield whole lines of a text that comes in pieces."""
    held = ""
    for piece in pieces:
        # The last part may be the beginning of a line, which the next piece continues.
        *whole, held = (held + piece).split("\n")
        yield from whole
    yield held


specialize(PointCloudObjectDetectionPipeline, SpatialLMConfig.model_type, LayoutDetectionPipeline)
specialize(PointCloudTextToTextPipeline, SpatialLMConfig.model_type, LayoutTextPipeline)

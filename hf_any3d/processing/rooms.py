"""SpatialLMProcessor: converts scans of rooms to prompts with voxels, and answers to layouts."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import LogitsProcessorList, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from hf_any3d.data.files import PointCloudError
from hf_any3d.data.frames.room_voxels import VoxelizedRoom, clean_room, voxelize_room
from hf_any3d.data.frames.scan_frames import ScanFrame, find_frame, frame_parts
from hf_any3d.data.inputs import split_clouds, to_cloud
from hf_any3d.data.options import at_least, one_of
from hf_any3d.modeling.hooks import LibrarySettingsMixin
from hf_any3d.modeling.layers.boxes import UP_AXES
from hf_any3d.modeling.layers.layouts import EXTENT, KINDS, Layout
from hf_any3d.modeling.spatiallm import SpatialLMConfig
from hf_any3d.modeling.spatiallm.grammar import LayoutGrammar, LayoutLogitsProcessor
from hf_any3d.processing.point_clouds import errors_of_cloud, fill_up

CLASSES = tuple(
    "sofa chair dining_chair bar_chair stool bed pillow wardrobe nightstand tv_cabinet wine_cabinet bathroom_cabinet "
    "shoe_cabinet entrance_cabinet decorative_cabinet washing_cabinet wall_cabinet sideboard cupboard coffee_table "
    "dining_table side_table dressing_table desk integrated_stove gas_stove range_hood micro-wave_oven sink stove "
    "refrigerator hand_sink shower shower_room toilet tub illumination chandelier floor-standing_lamp wall_decoration "
    "painting curtain carpet plants potted_bonsai tv computer air_conditioner washing_machine clothes_rack mirror "
    "bookcase cushion bar screen combination_sofa dining_table_combination leisure_table_and_chair_combination "
    "multifunctional_combination_bed".split()
)
"""Objects that the released models know; they know no others."""
TASKS = {
    "all": "Detect walls, doors, windows, boxes.",
    "layout": "Detect walls, doors, windows.",
    "objects": "Detect boxes.",
}
"""What a model is asked to write -> the instruction that it was trained with."""
TEMPLATE_SHA256 = "2165992d6d17de4c73fd03af037701c9d0fb2f7896e4b64b22f8ec39288d6c21"
"""Digest of the text that the released models were trained with, `code_template.txt` of their program."""
START, PLACE, END = "<|point_start|>", "<|point_pad|>", "<|point_end|>"
CHOICES = ("middle", "random")
_FEWEST_POINTS = 3
_MARKS = ("<|layout_s|>", "<|layout_e|>")


def asked_of(layout: Layout, task: str, classes: Sequence[str] = ()) -> Layout:
    """Return what of a layout a task, one of `TASKS`, and classes ask for; without any classes all."""
    if task == "layout":
        layout = dataclasses.replace(layout, boxes=())
    elif task == "objects":
        layout = dataclasses.replace(layout, walls=(), doors=(), windows=())
    if classes:
        layout = dataclasses.replace(layout, boxes=tuple(box for box in layout.boxes if box.label in classes))
    return layout


class SpatialLMProcessor(LibrarySettingsMixin, ProcessorMixin):
    """Scans of rooms and a task become inputs of a SpatialLM, and its answers layouts in the scan's frame.

    The model knows scans in meters, z up, with walls along the axes, so the frame of a scan is found and changed, and
    the change is undone in layouts; see `hf_any3d.data.frames.scan_frames`. The same scan always gives the same
    inputs, unless `choice="random"`.

    Args:
        tokenizer: The language model's tokenizer, whose vocabulary has the three tokens around and for clouds.
        num_bins: `SpatialLMConfig.num_bins`.
        stride: How many cells are as long as one of the point encoder's last stage.
        align: Whether to find up axis, tilt, unit, floor and turn of a scan; or which of them, some of `FRAME_PARTS`
            of `hf_any3d.data.frames.scan_frames`. `frame.sentences` of a room that was read say what was found; what
            cannot be told stays, with a warning.
        clean: Whether to average points in voxels and to remove outliers.
        choice: Which point of a cell is kept: "middle" of those it has, or "random", as in the released training.
        code_template: Text after the task that declares the language, with which the released models were trained; a
            file of their program. Empty for none.
        system: Text of a system message; None for none.
        lower_edge: Whether numbers of an answer mean the lower edge of a bin, as in the released models, instead of
            its center.
        classes: Labels of the objects that the model was trained on; by default those of the released models.
        template_sha256: Digest of the `code_template` of the training; a warning tells if the text is another. None
            for no warning.
        chat_template: By default that of the tokenizer.

    Example:
        ```python
        import numpy as np
        from transformers import ByT5Tokenizer
        from hf_any3d import SpatialLMProcessor

        # That of a saved model: AutoProcessor.from_pretrained("me/spatiallm").
        tokens = ["<|point_start|>", "<|point_pad|>", "<|point_end|>"]
        tokenizer = ByT5Tokenizer(extra_ids=0, additional_special_tokens=tokens)
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
        processor = SpatialLMProcessor(tokenizer, align=False)
        draw = np.random.default_rng(0).random
        rooms = processor.read({"points": 4 * draw((1000, 3)), "colors": draw((1000, 3))})  # or "room.ply"
        # processor.decode_layouts(answers, rooms) reads what model.generate(**inputs) adds to them.
        inputs = processor(rooms, task="layout")
        inputs["points"].shape  # (1, …, 6)
        ```
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        num_bins: int = 1280,
        stride: int = 16,
        align: bool | Sequence[str] = True,
        clean: bool = True,
        choice: str = "middle",
        code_template: str = "",
        system: str | None = None,
        lower_edge: bool = False,
        classes: Sequence[str] = CLASSES,
        template_sha256: str | None = None,
        chat_template: str | None = None,
    ):
        # Tokenizers differ in what they return for a token that they do not have.
        for token in (START, PLACE, END):
            if tokenizer.convert_tokens_to_ids(token) in (None, -1, tokenizer.unk_token_id):
                raise ValueError(f"tokenizer has no token {token!r}; expected {START}, {PLACE} and {END}")
        super().__init__(tokenizer, chat_template=chat_template or tokenizer.chat_template)
        # What fills up shorter prompts is masked, so any token will do.
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        at_least(1, num_bins=num_bins, stride=stride)
        self.num_bins = num_bins
        self.stride = stride
        self.align = align if isinstance(align, bool) else list(frame_parts(align))
        self.choice = one_of("choice", choice, CHOICES)
        self.clean = clean
        self.lower_edge = lower_edge
        self.classes = list(classes)
        self.code_template = code_template
        self.system = system
        self.template_sha256 = template_sha256

    @classmethod
    def from_config(
        cls, config: SpatialLMConfig, tokenizer: PreTrainedTokenizerBase, **kwargs: Any
    ) -> SpatialLMProcessor:
        """Build the processor of a model."""
        point: Any = config.point_config
        # Each pooling makes cells longer by its stride.
        stride = math.prod(point.pooling_strides)
        return cls(tokenizer, **{"num_bins": config.num_bins, "stride": stride, **kwargs})

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs of `SpatialLMForConditionalGeneration`."""
        return ["input_ids", "attention_mask", "points", "grid_coord", "point_mask"]

    def read(
        self,
        clouds: Any,
        *,
        seed: int | None = None,
        align: bool | str | Sequence[str] | None = None,
        up_axis: str | None = None,
    ) -> list[VoxelizedRoom]:
        """Read scans, align and clean them and make voxels.

        Args:
            clouds: One scan or many: files, arrays, anything that `PointCloudProcessor` accepts. Without colors they
                are black.
            seed: Of the random choices, for `choice="random"`.
            align: Instead of the processor's own.
            up_axis: The axis that points up, one of `UP_AXES` of `hf_any3d.modeling.layers.boxes`; by default what
                the format of a file says, or else what is found with `align`.
        """
        alignment = frame_parts(self.align if align is None else align)
        if up_axis is not None:
            one_of("up_axis", up_axis, UP_AXES)
        draws = np.random.default_rng(seed) if self.choice == "random" else None
        entries = split_clouds(clouds)
        rooms = []
        for number, entry in enumerate(entries):
            with errors_of_cloud(number, len(entries)):
                rooms.append(self._voxelize(entry, draws, alignment, up_axis))
        return rooms

    def _voxelize(
        self, entry: Any, draws: np.random.Generator | None, align: tuple[str, ...], up_axis: str | None
    ) -> VoxelizedRoom:
        cloud = to_cloud(entry, ("xyz", "rgb"))
        if cloud.is_mesh:
            raise PointCloudError("a mesh; expected a cloud of points, such as sample_surface makes")
        cloud.check_usable(_FEWEST_POINTS)
        # In double precision, so that turning and cutting a scan into cells moves no point
        points = cloud.points.astype(np.float64)
        # In float32, in which k / 255 times 255 is k, for all 256 values.
        colors = np.zeros_like(points) if cloud.colors is None else np.trunc(cloud.colors * np.float32(255))
        frame = None
        if align:
            # What the format of a file says counts before what the shape of the room suggests.
            frame = find_frame(points, up_axis=up_axis or cloud.up_axis, parts=align)
            for note in frame.warnings:
                warnings.warn(note, stacklevel=3)
        # Without alignment a stated axis is taken at its word.
        elif up_axis is not None:
            frame = ScanFrame(up_axis)
        room = self.voxelize(points if frame is None else frame.apply(points), colors, draws)
        # Kept apart from the points, so that answers can be brought back to the coordinates of the file.
        room.frame = frame
        room.offset = cloud.offset
        if cloud.colors is None:
            warnings.warn("no colors; black stands for them, which the published models hardly saw", stacklevel=3)
        return room

    def voxelize(
        self, points: np.ndarray, colors: np.ndarray, draws: np.random.Generator | None = None
    ) -> VoxelizedRoom:
        """Make voxels of points `(points, 3)` in meters and their colors in 0 to 255; see `read`."""
        if self.clean:
            # In voxels of the width of a bin, as in the released program.
            points, means = clean_room(points, colors.astype(np.float64) / 255, EXTENT / self.num_bins)
            # A mean of equal colors must not be cut to the next lower one for a rounding error.
            colors = np.trunc(means * 255 + 1e-9)
        # The model has bins for so many meters alone.
        extent = np.ptp(points, axis=0).max()
        if extent > EXTENT:
            warnings.warn(
                f"the scan is {extent:.1f} long, more than the {EXTENT:g} m that the model knows; is it in meters?",
                stacklevel=2,
            )
        return voxelize_room(points, colors, self.num_bins, draws)

    def instruction(self, task: str = "all", classes: Sequence[str] = ()) -> str:
        """Return the text after a cloud; the arguments are those of a call."""
        text = TASKS[one_of("task", task, tuple(TASKS))]
        self.check_classes(classes, task)
        if self.template_sha256 not in (None, hashlib.sha256(self.code_template.encode()).hexdigest()):
            warnings.warn(
                f"the processor's code_template {'is not' if self.code_template else 'lacks'} the text that the "
                "model was trained with, code_template.txt of the authors' program, so answers may be worse; set "
                "code_template to the text of that file",
                stacklevel=3,
            )
        if classes:
            text = text.replace("boxes", ", ".join(classes))
        # Word by word, slip of the pen included, as the released models were trained
        return f"{text} The reference code is as followed: {self.code_template}" if self.code_template else text

    def grammar(
        self,
        task: str = "all",
        classes: Sequence[str] = (),
        max_new_tokens: int | None = None,
        eos_token_id: int | list[int] | None = None,
    ) -> LogitsProcessorList:
        """Return a processor of scores for one call of `generate`, with which answers are well-formed layouts.

        The first two arguments are those of a call, the others as given to `generate`: no line is begun that may not
        fit into `max_new_tokens`, and `eos_token_id` ends an answer, by default that of the tokenizer.

        Example:
            ```python
            model.generate(**inputs, logits_processor=processor.grammar("layout", max_new_tokens=2000))
            ```
        """
        self.check_classes(classes, one_of("task", task, tuple(TASKS)))
        # The grammar knows each kind of line of a layout: an answer about objects has no walls.
        kinds = {"layout": ("wall", "door", "window"), "objects": ("bbox",)}.get(task, tuple(KINDS))
        # A new one for each call, as it follows the answers of one batch
        language = LayoutGrammar(self.num_bins, classes or self.classes, kinds)
        return LogitsProcessorList(
            [LayoutLogitsProcessor(self.tokenizer, language, eos_token_id, max_new_tokens=max_new_tokens)]
        )

    def check_classes(self, classes: Sequence[str], task: str, argument: str = "classes") -> None:
        """Check that a model can look for objects in a task; messages call the objects by the name of an argument."""
        unknown = [name for name in classes if name not in self.classes]
        if unknown:
            problem = f"which the model was not trained on; expected some of {', '.join(self.classes)}"
            raise ValueError(f"{argument} has {unknown[0]!r}, {problem}")
        if classes and task == "layout":
            raise ValueError(f"{argument} with task='layout', which has no objects; use task='objects' or 'all'")

    def __call__(
        self,
        rooms: Sequence[VoxelizedRoom] | Any,
        *,
        task: str = "all",
        classes: Sequence[str] = (),
        layouts: Sequence[Layout] | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Make prompts for scans, or whole conversations with the answers that a model is to learn.

        Args:
            rooms: What `read` returned, or scans as it takes them.
            task: What to write, one of `TASKS`.
            classes: Objects to look for, of the processor's; none for all.
            layouts: Layouts to learn, in the frames and units of the scans; of them, what `task` and `classes` ask
                for.
            padding_side: Side on which shorter prompts are filled up; by default "left", with `layouts` "right".
            return_tensors: "pt" or "np".

        Returns:
            `input_ids` and `attention_mask` `(rooms, tokens)`; `points (rooms, voxels, 6)` float32, `grid_coord
            (rooms, voxels, 3)` and `point_mask (rooms, voxels)`, filled up to the largest room; with `layouts` also
            `labels (rooms, tokens)`, -100 in all but the answers.

        Raises:
            ValueError: `task` or a class is none of those that the processor has.
            PointCloudFileError: A file cannot be read.
        """
        text = self.instruction(task, classes)
        if not (isinstance(rooms, list) and rooms and all(isinstance(room, VoxelizedRoom) for room in rooms)):
            rooms = self.read(rooms)
        system = [{"role": "system", "content": self.system}] if self.system else []
        prompts = []
        for room in rooms:
            # As many places as the point encoder returns tokens, which replace them.
            content = f"{START}{PLACE * room.count_tokens(self.stride)}{END}{text}"
            messages = [*system, {"role": "user", "content": content}]
            options = {"chat_template": self.chat_template, "tokenize": False, "add_generation_prompt": True}
            prompts.append(self.tokenizer.apply_chat_template(messages, **options))
        if layouts is None:
            # On the left, so that generation goes on where all prompts end.
            batch = self._tokenize(prompts, padding_side or "left")
        else:
            both = zip(layouts, rooms, strict=True)
            answers = [self.answer(layout, room, task, classes) for layout, room in both]
            batch = self._tokenize(prompts, padding_side or "right", answers)
        batch["points"] = fill_up([room.points.astype(np.float32) for room in rooms])
        batch["grid_coord"] = fill_up([room.grid_coord for room in rooms])
        batch["point_mask"] = fill_up([np.ones(len(room.points), dtype=bool) for room in rooms])
        return BatchFeature(batch, tensor_type=return_tensors)

    def answer(self, layout: Layout, room: VoxelizedRoom, task: str = "all", classes: Sequence[str] = ()) -> str:
        """Return the text that a model learns to write: in the order of the language, with the numbers of bins.

        The layout is in the frame and unit of the scan; what `task` and `classes` do not ask for is left out.
        """
        # In meters from the corner of the room, as the model knows places
        moved = room.from_scan(asked_of(layout, task, classes))
        return moved.ordered(EXTENT / self.num_bins).quantized(self.num_bins).write()

    def _tokenize(self, prompts: list[str], side: str, answers: list[str] | None = None) -> dict[str, np.ndarray]:
        """Return `input_ids`, `attention_mask` and, with answers, `labels`, filled up on one side."""
        rows = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        # Where the answer of each row begins
        starts = [len(row) for row in rows]
        if answers is not None:
            # Apart from the prompt, as in generation, where no token spans both. The end is what stops generation.
            ends = self.tokenizer([f"{text}{self.tokenizer.eos_token}" for text in answers], add_special_tokens=False)
            rows = [row + end for row, end in zip(rows, ends["input_ids"], strict=True)]
        longest = max(map(len, rows))
        # How many tokens are added in front of each row, and after it
        filled = [(longest - len(row), 0) if side == "left" else (0, longest - len(row)) for row in rows]

        def padded(values: list[list[int]], fill: Any) -> np.ndarray:
            both = zip(values, filled, strict=True)
            return np.stack([np.pad(row, pad, constant_values=fill) for row, pad in both]).astype(np.int64)

        batch = {
            "input_ids": padded(rows, self.tokenizer.pad_token_id),
            "attention_mask": padded([[1] * len(row) for row in rows], 0),
        }
        if answers is not None:
            # The loss is over answers alone.
            labels = [[-100] * start + row[start:] for row, start in zip(rows, starts, strict=True)]
            batch["labels"] = padded(labels, -100)
        return batch

    def decode_layouts(
        self, answers: Any, rooms: Sequence[VoxelizedRoom], *, strict: bool = False, keep_unclosed: bool = False
    ) -> list[Layout]:
        """Return the layouts of answers, in the frames and units of the scans.

        `answers (rooms, tokens)` is what was generated after the prompts; further arguments are those of
        `Layout.parse`.
        """
        return [
            self.in_frame(Layout.parse(text, strict=strict, keep_unclosed=keep_unclosed), room)
            for text, room in zip(self.answer_texts(answers), rooms, strict=True)
        ]

    def answer_texts(self, answers: Any) -> list[str]:
        """Return the texts of answers `(rooms, tokens)`, without special tokens."""
        return list(map(self.without_marks, self.tokenizer.batch_decode(answers, skip_special_tokens=True)))

    @staticmethod
    def without_marks(text: str) -> str:
        """Remove the marks around answers of the released training, which are plain text to some tokenizers."""
        return text.replace(_MARKS[0], "").replace(_MARKS[1], "")

    def in_frame(self, layout: Layout, room: VoxelizedRoom) -> Layout:
        """Return a layout in the numbers of bins in the frame and unit of a scan."""
        return room.to_scan(layout.unquantized(self.num_bins, lower_edge=self.lower_edge))

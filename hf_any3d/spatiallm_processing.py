"""SpatialLMProcessor: converts scans of rooms to prompts with voxels, and answers to layouts."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from hf_any3d.data.files import PointCloudError
from hf_any3d.data.inputs import split_clouds, to_cloud
from hf_any3d.modeling.library import LibrarySettingsMixin
from hf_any3d.modeling.spatiallm import Layout, SpatialLMConfig
from hf_any3d.modeling.spatiallm.configuration_spatiallm import EXTENT
from hf_any3d.processing import checked_choice

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
_NEIGHBORS, _DEVIATIONS = 15, 2.0
_FEWEST_POINTS = 3
_MARKS = ("<|layout_s|>", "<|layout_e|>")


@dataclass
class VoxelizedRoom:
    """A scan as voxels.

    Args:
        points: `(voxels, 6)` float64, meters from the corner and colors in [-1, 1].
        grid_coord: `(voxels, 3)` int64, their cells.
        corner: `(3,)` float64, the lowest corner of the scan, which is added to the positions of an answer.
        index: `(voxels,)`, the point of the cleaned cloud that each voxel was taken from.
        inverse: `(cleaned points,)`, the voxel of each of its points.
    """

    points: np.ndarray
    grid_coord: np.ndarray
    corner: np.ndarray
    index: np.ndarray
    inverse: np.ndarray

    def count_tokens(self, stride: int) -> int:
        """Count the cells that are `stride` times as large, which have a token each."""
        return len(np.unique(self.grid_coord // stride, axis=0))


def clean_room(points: np.ndarray, colors: np.ndarray, grid_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Average the points of each voxel, and remove those that are far from all others.

    A voxel stays if its mean distance to the 15 nearest ones, itself among them, is below the mean of all by at most
    two standard deviations above it, and it has neighbors elsewhere. This is what the released program lets Open3D do.

    Args:
        points: `(points, 3)` float64.
        colors: `(points, 3)` float64.
        grid_size: Edge of a voxel.

    Returns:
        Positions and colors of the voxels that stay, sorted by x, y, z.
    """
    from scipy.spatial import KDTree

    origin = points.min(axis=0) - grid_size / 2
    cells = np.floor((points - origin) / grid_size).astype(np.int64)
    _, inverse, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)

    def mean(values: np.ndarray) -> np.ndarray:
        sums = [np.bincount(inverse, weights=column, minlength=len(counts)) for column in values.T]
        return np.stack(sums, axis=1) / counts[:, None]

    points, colors = mean(points), mean(colors)
    if len(points) < 2:
        return points, colors
    distances, _ = KDTree(points).query(points, k=min(_NEIGHBORS, len(points)))
    own = distances.mean(axis=1)
    kept = (own > 0) & (own < own.mean() + _DEVIATIONS * own.std(ddof=1))
    # Voxels that are all equally far apart, such as two, have no deviation and would all go.
    return (points[kept], colors[kept]) if kept.any() else (points, colors)


def voxelize_room(
    points: np.ndarray,
    colors: np.ndarray | None,
    num_bins: int,
    draws: np.ndarray | np.random.Generator | None = None,
) -> VoxelizedRoom:
    """Move a scan to the corner of its box, and keep one point of each cell.

    Args:
        points: `(points, 3)` float64, in meters.
        colors: `(points, 3)`, in 0 to 255; None for black.
        num_bins: Cells along 32 m; what is beyond falls into the last one.
        draws: A generator draws the point of each cell; an array has the numbers in place of those it would draw. None
            takes the one in the middle.
    """
    corner = points.min(axis=0)
    xyz = points - corner
    rgb = (np.zeros_like(xyz) if colors is None else colors) / 127.5 - 1
    cells = np.floor(xyz / (EXTENT / num_bins)).astype(np.int64)
    cells = np.clip(cells - cells.min(axis=0), 0, num_bins - 1)
    # The order of cells decides which one a draw belongs to, so it is that of the released program's hash.
    keys = np.full(len(cells), 14695981039346656037, dtype=np.uint64)
    for axis in range(3):
        keys = (keys * np.uint64(1099511628211)) ^ cells[:, axis].astype(np.uint64)
    order = np.argsort(keys, kind="stable")
    _, first, inverse, counts = np.unique(keys[order], return_index=True, return_inverse=True, return_counts=True)
    most = int(counts.max())
    if draws is None:
        numbers = np.full(len(counts), most // 2)
    elif isinstance(draws, np.random.Generator):
        numbers = draws.integers(0, most, len(counts))
    else:
        numbers = draws
    index = order[first + numbers % counts]
    of_point = np.empty(len(cells), dtype=np.int64)
    of_point[order] = inverse.reshape(-1)
    return VoxelizedRoom(np.concatenate([xyz, rgb], axis=1)[index], cells[index], corner, index, of_point)


class SpatialLMProcessor(LibrarySettingsMixin, ProcessorMixin):
    """Scans of rooms and a task become inputs of a SpatialLM, and its answers layouts in the scan's frame.

    A scan has meters and z up, with walls along the axes. The same scan always gives the same inputs, unless
    `choice="random"`.

    Args:
        tokenizer: The language model's tokenizer, whose vocabulary has the three tokens around and for clouds.
        num_bins: `SpatialLMConfig.num_bins`.
        stride: How many cells are as long as one of the point encoder's last stage.
        clean: Whether to average points in voxels and to remove outliers.
        choice: Which point of a cell is kept: "middle" of those it has, or "random", as in the released training.
        code_template: Text after the task that declares the language, with which the released models were trained; a
            file of their program. Empty for none.
        system: Text of a system message; None for none.
        lower_edge: Whether numbers of an answer mean the lower edge of a bin, as in the released models, instead of
            its center.
        template_sha256: Digest of the `code_template` of the training; a warning tells if the text is another. None
            for no warning.
        chat_template: By default that of the tokenizer.

    Raises:
        ValueError: An argument that is not one of the allowed values; the tokenizer has no such tokens.

    Example:
        ```python
        rooms = processor.read("room.ply")
        inputs = processor(rooms, task="layout")
        answers = model.generate(**inputs, max_new_tokens=2000)[:, inputs["input_ids"].shape[1] :]
        layout = processor.decode_layouts(answers, rooms)[0]
        ```
    """

    _opened_by = ("AutoProcessor",)

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        num_bins: int = 1280,
        stride: int = 16,
        clean: bool = True,
        choice: str = "middle",
        code_template: str = "",
        system: str | None = None,
        lower_edge: bool = False,
        template_sha256: str | None = None,
        chat_template: str | None = None,
    ):
        unknown = [token for token in (START, PLACE, END) if tokenizer.convert_tokens_to_ids(token) in (None, -1)]
        unknown += [
            token
            for token in (START, PLACE, END)
            if token not in unknown and tokenizer.convert_tokens_to_ids(token) == tokenizer.unk_token_id
        ]
        if unknown:
            raise ValueError(f"tokenizer has no token {unknown[0]!r}; expected {START}, {PLACE} and {END}")
        super().__init__(tokenizer, chat_template=chat_template or tokenizer.chat_template)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        for name, value in (("num_bins", num_bins), ("stride", stride)):
            if value < 1:
                raise ValueError(f"{name}={value}; expected at least 1")
        self.num_bins, self.stride = num_bins, stride
        self.clean = checked_choice("clean", clean, (True, False))
        self.choice = checked_choice("choice", choice, CHOICES)
        self.lower_edge = checked_choice("lower_edge", lower_edge, (True, False))
        self.code_template, self.system, self.template_sha256 = code_template, system, template_sha256

    @classmethod
    def from_config(
        cls, config: SpatialLMConfig, tokenizer: PreTrainedTokenizerBase, **kwargs: Any
    ) -> SpatialLMProcessor:
        """Build the processor of a model.

        Args:
            config: The model's config.
            tokenizer: Tokenizer of its language model.
            **kwargs: Further arguments of the class.
        """
        point: Any = config.point_config
        stride = math.prod(point.pooling_strides)
        return cls(tokenizer, **{"num_bins": config.num_bins, "stride": stride, **kwargs})

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs of `SpatialLMForConditionalGeneration`."""
        return ["input_ids", "attention_mask", "points", "grid_coord", "point_mask"]

    @property
    def has_trained_template(self) -> bool:
        """True if `code_template` is the text of the training, as far as is known."""
        return self.template_sha256 in (None, hashlib.sha256(self.code_template.encode()).hexdigest())

    def read(self, clouds: Any, *, seed: int | None = None) -> list[VoxelizedRoom]:
        """Read scans, clean them and make voxels.

        Args:
            clouds: One scan or many: files, arrays, anything that `PointCloudProcessor` accepts. Without colors they
                are black.
            seed: Of the random choices, for `choice="random"`.

        Raises:
            ValueError: A scan cannot be read.
        """
        draws = np.random.default_rng(seed) if self.choice == "random" else None
        entries, rooms = split_clouds(clouds), []
        for number, entry in enumerate(entries):
            try:
                rooms.append(self._voxelize(entry, draws))
            except PointCloudError as error:
                if len(entries) == 1:
                    raise
                raise type(error)(f"cloud {number}: {error}") from error
        return rooms

    def _voxelize(self, entry: Any, draws: np.random.Generator | None) -> VoxelizedRoom:
        cloud = to_cloud(entry, ("xyz", "rgb"))
        if cloud.is_mesh:
            raise PointCloudError("a mesh; expected a cloud of points, such as sample_surface makes")
        if len(cloud) < _FEWEST_POINTS:
            raise PointCloudError(f"{len(cloud)} points; expected at least {_FEWEST_POINTS}")
        points = cloud.points.astype(np.float64)
        # In float32, in which k / 255 times 255 is k, for all 256 values.
        colors = np.zeros_like(points) if cloud.colors is None else np.trunc(cloud.colors * np.float32(255))
        if self.clean:
            points, means = clean_room(points, colors.astype(np.float64) / 255, EXTENT / self.num_bins)
            # A mean of equal colors must not be cut to the next lower one for a rounding error.
            colors = np.trunc(means * 255 + 1e-9)
        if (extent := np.ptp(points, axis=0).max()) > EXTENT:
            warnings.warn(
                f"the scan is {extent:.1f} long, more than the {EXTENT:g} m that the model knows; is it in meters?",
                stacklevel=2,
            )
        room = voxelize_room(points, colors, self.num_bins, draws)
        if cloud.offset is not None:
            room.corner = room.corner + cloud.offset
        return room

    def instruction(self, task: str = "all", classes: Sequence[str] = ()) -> str:
        """Return the text after a cloud.

        Args:
            task: One of `TASKS`.
            classes: Objects to look for, of `CLASSES`; none for all.

        Raises:
            ValueError: The task or a class is unknown, or the task has no objects.
        """
        text = TASKS[checked_choice("task", task, tuple(TASKS))]
        self.check_classes(classes, task)
        if not self.has_trained_template:
            warnings.warn(
                f"the processor's code_template {'is not' if self.code_template else 'lacks'} the text that the "
                "model was trained with, code_template.txt of the authors' program, so answers may be worse; set "
                "code_template to the text of that file",
                stacklevel=3,
            )
        if classes:
            text = text.replace("boxes", ", ".join(classes))
        return f"{text} The reference code is as followed: {self.code_template}" if self.code_template else text

    @staticmethod
    def check_classes(classes: Sequence[str], task: str, argument: str = "classes") -> None:
        """Check that a model can look for objects.

        Args:
            classes: The objects.
            task: One of `TASKS`.
            argument: What messages call the first.

        Raises:
            ValueError: A class is unknown, or the task has no objects.
        """
        if unknown := [name for name in classes if name not in CLASSES]:
            raise ValueError(
                f"{argument} has {unknown[0]!r}, which the model was not trained on; expected some of its "
                f"{len(CLASSES)} classes: {', '.join(CLASSES)}"
            )
        if classes and task == "layout":
            raise ValueError(f"{argument} with task='layout', which has no objects; expected task='objects' or 'all'")

    def __call__(
        self,
        rooms: Sequence[VoxelizedRoom] | Any,
        *,
        task: str = "all",
        classes: Sequence[str] = (),
        padding_side: str = "left",
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Make prompts for scans.

        Args:
            rooms: What `read` returned, or scans as it takes them.
            task: What to write, one of `TASKS`.
            classes: Objects to look for, of `CLASSES`; none for all.
            padding_side: Side on which shorter prompts are filled up.
            return_tensors: "pt" or "np".

        Returns:
            `input_ids` and `attention_mask` `(rooms, tokens)`; `points (rooms, voxels, 6)` float32, `grid_coord
            (rooms, voxels, 3)` and `point_mask (rooms, voxels)`, filled up to the largest room.

        Raises:
            ValueError: A scan cannot be read, or the task or a class is unknown.
        """
        text = self.instruction(task, classes)
        if not (isinstance(rooms, list) and rooms and all(isinstance(room, VoxelizedRoom) for room in rooms)):
            rooms = self.read(rooms)
        prompts = [self._prompt(f"{START}{PLACE * room.count_tokens(self.stride)}{END}{text}") for room in rooms]
        batch = dict(
            self.tokenizer(
                prompts, add_special_tokens=False, padding=True, padding_side=padding_side, return_tensors="np"
            )
        )
        longest = max(len(room.points) for room in rooms)
        filled = [(0, longest - len(room.points)) for room in rooms]
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
        batch["points"] = np.stack(
            [np.pad(room.points, (fill, (0, 0))) for room, fill in zip(rooms, filled, strict=True)]
        ).astype(np.float32)
        batch["grid_coord"] = np.stack(
            [np.pad(room.grid_coord, (fill, (0, 0))) for room, fill in zip(rooms, filled, strict=True)]
        )
        batch["point_mask"] = np.arange(longest) < np.array([len(room.points) for room in rooms])[:, None]
        return BatchFeature(batch, tensor_type=return_tensors)

    def _prompt(self, content: str) -> str:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": content})
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=True
        )

    def decode_layouts(
        self, answers: Any, rooms: Sequence[VoxelizedRoom], *, strict: bool = False, keep_unclosed: bool = False
    ) -> list[Layout]:
        """Return the layouts of answers, in meters and in the frames of the scans.

        Args:
            answers: `(rooms, tokens)`, what was generated after the prompts.
            rooms: The scans.
            strict: As of `Layout.parse`.
            keep_unclosed: The same.

        Raises:
            ValueError: There are other numbers of answers and rooms; with `strict`, an answer is malformed.
        """
        texts = self.answer_texts(answers)
        if len(texts) != len(rooms):
            raise ValueError(f"{len(texts)} answers for {len(rooms)} rooms; expected one for each")
        return [
            self.in_frame(Layout.parse(text, strict=strict, keep_unclosed=keep_unclosed), room)
            for text, room in zip(texts, rooms, strict=True)
        ]

    def answer_texts(self, answers: Any) -> list[str]:
        """Return the texts of answers `(rooms, tokens)`, without special tokens."""
        return list(map(self.without_marks, self.tokenizer.batch_decode(answers, skip_special_tokens=True)))

    @staticmethod
    def without_marks(text: str) -> str:
        """Remove the marks around answers of the released training, which are plain text to some tokenizers."""
        return text.replace(_MARKS[0], "").replace(_MARKS[1], "")

    def in_frame(self, layout: Layout, room: VoxelizedRoom) -> Layout:
        """Return a layout in the numbers of bins in meters and the frame of a scan."""
        return layout.unquantized(self.num_bins, lower_edge=self.lower_edge).translated(room.corner)

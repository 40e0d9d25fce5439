"""Fine-tune SpatialLM on scans with layouts or boxes: rows, batches, adapters, and a run from arguments to card."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict
from peft import get_peft_model
from torch import nn
from transformers import AutoProcessor, BitsAndBytesConfig

from hf_any3d.data.frames.room_voxels import VoxelizedRoom
from hf_any3d.data.frames.scan_frames import turn_about_z
from hf_any3d.data.inputs import to_cloud
from hf_any3d.data.tables.numpy_rows import columns_of, near_origin, numpy_rows
from hf_any3d.data.torch_datasets import ArrowRows
from hf_any3d.evaluation.classification import Judgment
from hf_any3d.evaluation.layouts import score_layouts
from hf_any3d.integration.auto import AutoModelForPointCloudTextToText
from hf_any3d.model_card.run_report import RunReport
from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.modeling.layers.layouts import Box, Layout
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.modeling.spatiallm import SpatialLMForConditionalGeneration
from hf_any3d.processing.rooms import TASKS, SpatialLMProcessor, asked_of
from hf_any3d.training import program
from hf_any3d.training.arguments import DataArguments, PointTrainingArguments, argument, json_mapping
from hf_any3d.training.peft_methods import build_peft_config, peft_methods
from hf_any3d.training.rows import PreparedRows
from hf_any3d.training.trainer import PointTrainer

logger = logging.getLogger(__name__)

TURNS = ("none", "quarter", "any")
_NEAR = 0.15
"""Points this close to a box count as inside, in meters, as in the released program."""


def points_in_box(box: Box, points: np.ndarray, margin: float) -> np.ndarray:
    """Return which points `(points, 3)` are in a box or less than `margin` meters from it, `(points,)` bool."""
    turned = (points - (box.x, box.y, box.z)) @ turn_about_z(box.angle)  # back by the angle of the box
    return np.all(np.abs(turned) <= np.array([box.sx, box.sy, box.sz]) / 2 + margin, axis=1)


class LayoutRows(PreparedRows):
    """Rows `{"room": VoxelizedRoom, "layout": Layout}`, prepared when they are read.

    Args:
        dataset: Rows with `points`, perhaps `colors`, and `layout`, the text of a layout in meters; without that
            column, `boxes` and `box_labels` are the objects of the layout.
        processor: Processor of the model.
        seed: Seed of what differs in each epoch: turns, sizes, and the point of each cell. None for rows as they are,
            for evaluation.
        turns: Turns of training rooms about z: "none", "quarter" ones or "any".
        sizes: Smallest and largest factor of the size of training rooms.
        min_points: Boxes with fewer points are left out of training rows.
        fold_quarter_turns: Whether boxes have the text of boxes along the axes where they look the same.
    """

    def __init__(
        self,
        dataset: Dataset,
        processor: SpatialLMProcessor,
        seed: int | None = None,
        turns: str = "quarter",
        sizes: tuple[float, float] = (1.0, 1.0),
        min_points: int = 0,
        fold_quarter_turns: bool = False,
    ):
        self._names: list[str] | None = None
        columns = columns_of(dataset)
        if "layout" not in columns:
            # Boxes alone are layouts without walls; names of their classes are what the model writes.
            label = getattr(dataset.features.get("box_labels"), "feature", None)
            if not isinstance(label, ClassLabel) or "boxes" not in columns:
                raise ValueError(f"no column 'layout', nor boxes with classes; there are {columns}")
            self._names = label.names
        # Arrays instead of lists of numbers, which would take many times the memory.
        self.dataset = numpy_rows(dataset)
        self.rows = ArrowRows(self.dataset)
        self.processor = processor
        self.seed = seed
        self.turns = turns
        self.sizes = sizes
        self.min_points = min_points
        self.fold_quarter_turns = fold_quarter_turns
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def prepare_row(self, number: int) -> dict[str, Any]:
        """Return a room with its layout."""
        row, offset = near_origin(self.rows.__getitems__([number])[0])
        if self._names is None:
            try:
                layout = Layout.parse(str(row["layout"]), strict=True)
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from None
            # Walls and boxes of a text are where the points were.
            layout = layout.translated(-offset)
        else:
            # (boxes, 7): center, sizes and heading
            rows = np.asarray(row["boxes"], dtype=np.float64).reshape(-1, 7).tolist()
            names = [self._names[int(label)] for label in np.asarray(row["box_labels"]).reshape(-1)]
            boxes = [
                Box(place, name, x, y, z, heading, length, width, height)
                for place, (name, (x, y, z, length, width, height, heading)) in enumerate(
                    zip(names, rows, strict=True)
                )
            ]
            layout = Layout(boxes=tuple(boxes))
        if self.seed is None:
            # As a pipeline reads it, without a turn: the layout is in the frame of the file.
            return {"room": self.processor.read([row], align=False)[0], "layout": self._folded(layout)}
        # The same room is moved the same way in any process, and otherwise in each epoch.
        generator = np.random.default_rng((self.seed, self.epoch, number))
        cloud = to_cloud(row, ("xyz", "rgb"))
        points = cloud.points.astype(np.float64)
        # Whole numbers up to 255, as of bytes
        colors = np.zeros_like(points) if cloud.colors is None else np.trunc(cloud.colors * np.float32(255))
        points, layout = self._moved(points, layout, generator)
        # After the move, since what is near a box is counted in meters.
        if self.min_points:
            kept = tuple(box for box in layout.boxes if points_in_box(box, points, _NEAR).sum() >= self.min_points)
            layout = dataclasses.replace(layout, boxes=kept)
        return {"room": self.processor.voxelize(points, colors, generator), "layout": self._folded(layout)}

    def _folded(self, layout: Layout) -> Layout:
        return layout.with_folded_turns() if self.fold_quarter_turns else layout

    def _moved(self, points: np.ndarray, layout: Layout, generator: np.random.Generator) -> tuple[np.ndarray, Layout]:
        """Turn and scale a room about the center of its box."""
        center = (points.min(axis=0) + points.max(axis=0)) / 2
        angle = 0.0
        if self.turns == "quarter":
            # Rooms keep their walls along the axes.
            angle = math.pi / 2 * int(generator.integers(4))
        elif self.turns == "any":
            angle = generator.uniform(0, 2 * math.pi)
        # One number for all three axes: rooms are not stretched.
        size = float(generator.uniform(*self.sizes))
        moved = layout.translated(-center).scaled(size)
        if angle:
            moved = moved.rotated(angle)
        # Points are rows, so the transposed matrix turns them as `rotated` turns the layout.
        return (points - center) * size @ turn_about_z(angle).T + center, moved.translated(center)


@dataclass
class LayoutCollator:
    """Collate rows of `LayoutRows` to prompts with answers to `task`."""

    processor: SpatialLMProcessor
    task: str = "all"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what a call of the processor with layouts returns.

        Labels are those of the last `logits_to_keep` tokens, from the one before the first answer on: a prompt is
        several times as long as its answer, and scores of all words for each of its tokens take a gigabyte.
        """
        rooms: list[VoxelizedRoom] = [row["room"] for row in rows]
        batch = dict(self.processor(rooms, task=self.task, layouts=[row["layout"] for row in rows]))
        # The first place at which any row has an answer
        first = int((batch["labels"] != -100).any(dim=0).int().argmax())
        # The token before it tells it.
        batch["labels"] = batch["labels"][:, max(first - 1, 0) :]  # (rows, kept)
        batch["logits_to_keep"] = batch["labels"].shape[1]
        return batch


PARTS = {"language": "language_model", "encoder": "point_encoder"}
"""Name of a part that may be adapted or trained -> its module in the model."""
_BETWEEN = ("input_projection", "projector")
"""Layers between the parts, which are always trained."""
ADAPTED, ALONE, WHOLE = "lora", "none", "full"
_LANGUAGE, _ENCODER = PARTS


@dataclass
class LayoutModelArguments:
    """The model, and what of it is trained."""

    model_name_or_path: str | None = argument(
        None, help="Directory or Hub name of a saved SpatialLM, or the name of a published one."
    )
    peft: str = argument(
        ADAPTED,
        help="lora: low-rank adapters on the parts in --adapt; another PEFT method, such as guided_adapter: on "
        "the point encoder; full: fine-tune the parts in --adapt; none: neither. The projector between point "
        "encoder and language model is always trained.",
    )
    adapt: list[str] | None = argument(
        None,
        help="Parts to adapt: language, encoder or both; by default language, or encoder for methods that support "
        "only the encoder.",
    )
    peft_config: dict | str | None = argument(None, help="JSON object with settings of the PEFT method, such as r.")
    load_in_8bit: bool = argument(
        False, help="Load the frozen language model in 8 bits (bitsandbytes) while training adapters."
    )

    def __post_init__(self):
        if self.model_name_or_path is None:
            raise ValueError("--model_name_or_path is missing; expected a SpatialLM to start from")
        self.peft = self.peft.lower()
        # Methods of this package know the layers of a point transformer, not of a language model.
        others = [name for name in peft_methods() if name != ADAPTED]
        usual = [_ENCODER] if self.peft in others else [_LANGUAGE]
        self.adapt = list(usual if self.adapt is None else self.adapt)
        unknown = [name for name in self.adapt if name not in PARTS]
        if unknown:
            raise ValueError(f"--adapt {unknown[0]}; expected {' or '.join(PARTS)}")
        if self.peft in others and self.adapt != usual:
            raise ValueError(
                f"--adapt {' '.join(self.adapt)} cannot be combined with --peft {self.peft}, which adapts only the "
                f"point encoder; use --adapt {_ENCODER}, or --peft {ADAPTED}"
            )
        self.peft_config = json_mapping(self.peft_config, "peft_config")
        if (self.load_in_8bit or self.peft_config) and self.peft in (ALONE, WHOLE):
            raise ValueError(
                f"--load_in_8bit and --peft_config have no effect with --peft {self.peft}; leave them out"
            )


@dataclass
class LayoutDataArguments(DataArguments):
    """Scans with layouts or boxes."""

    dataset_name: str = field(default="rooms_with_layouts")
    up_axis: str = argument("z", help="Up axis; layouts require z.")
    features: list[str] = argument(
        default_factory=lambda: ["xyz", "rgb"], help="Channels per point; the model requires both."
    )
    num_points: int = argument(0, help="Points per scan; 0 uses all.")
    answer: str = argument(
        "all", help="What to train the model to generate: all, layout (walls, doors, windows) or objects."
    )
    turns: str = argument(
        "quarter", help="Random rotation of training rooms about z: none, quarter (multiples of 90°) or any."
    )
    sizes: list[float] = argument(
        default_factory=lambda: [0.75, 1.25], help="Minimum and maximum factor for random scaling of training rooms."
    )
    min_box_points: int = argument(0, help="Drop training boxes with fewer points in or near them.")
    fold_quarter_turns: bool = argument(
        False,
        help="Write boxes rotated by multiples of 90° as axis-aligned, swapping their sizes if needed: for data "
        "whose angles do not encode the front.",
    )
    max_new_tokens: int = argument(2048, help="Maximum number of tokens to generate in evaluation.")

    def __post_init__(self):
        super().__post_init__()
        # Layouts have heights along z, and the processor reads all points of a scan.
        check_settings(self, {"up_axis": ("z",), "answer": tuple(TASKS), "turns": TURNS, "num_points": (0,)})
        if len(self.sizes) != 2 or not 0 < self.sizes[0] <= self.sizes[1]:
            raise ValueError(f"--sizes {' '.join(map(str, self.sizes))}; expected the smallest and the largest factor")
        # Turns and sizes move the boxes with the room; augmentations of clouds would leave them behind.
        if self.augment:
            raise ValueError(f"--augment {' '.join(self.augment)} is not for layouts; use --turns and --sizes")


@dataclass
class LayoutTrainingArguments(PointTrainingArguments):
    """Training arguments with defaults for adapters; the released program trains all weights with 1e-5."""

    metric_for_best_model: str | None = field(default="loss")
    prediction_loss_only: bool = field(default=True)
    per_device_train_batch_size: int = field(default=1)
    per_device_eval_batch_size: int = field(default=1)
    learning_rate: float = field(default=1e-4)
    weight_decay: float = field(default=0.0)
    warmup_steps: float = field(default=0.03)
    num_train_epochs: float = field(default=10)


def adapted(model: SpatialLMForConditionalGeneration, arguments: LayoutModelArguments) -> nn.Module:
    """Freeze a model but for what is trained, and add adapters."""
    assert isinstance(arguments.peft_config, dict) and arguments.adapt is not None
    # The layers between the parts are trained whole, beside the adapters.
    if arguments.peft not in (ALONE, WHOLE):
        settings: dict[str, Any] = {"modules_to_save": list(_BETWEEN)}
        if arguments.peft == ADAPTED:
            head = model.get_output_embeddings()
            patterns = []
            # A pattern for each part, so that layers of the same names elsewhere stay frozen.
            for part in (PARTS[name] for name in arguments.adapt):
                layers = model.base_model.get_submodule(part).named_modules()
                # The output head may share its weights with the embeddings.
                linear = {name for name, layer in layers if isinstance(layer, nn.Linear) and layer is not head}
                # By their last names, which repeat from block to block
                names = sorted({name.rpartition(".")[2] for name in linear})
                patterns.append(rf".*{part}\..*\.({'|'.join(names)})")
            settings |= {"r": 16, "lora_alpha": 32, "target_modules": "|".join(patterns)}
        config = build_peft_config(arguments.peft, model, settings | arguments.peft_config)
        return get_peft_model(model, config)
    # Without adapters: all is frozen, then the layers between and, with full, the parts are released.
    trained = list(_BETWEEN) + ([PARTS[name] for name in arguments.adapt] if arguments.peft == WHOLE else [])
    model.requires_grad_(False)
    for name in trained:
        model.base_model.get_submodule(name).requires_grad_(True)
    return model


@dataclass
class Layouts(program.TrainingTask):
    """Fine-tuning of a SpatialLM."""

    model: LayoutModelArguments
    data: LayoutDataArguments
    training: LayoutTrainingArguments
    usage = "hf-any3d detect FILE --model {}"

    def build(self, splits: DatasetDict) -> tuple[nn.Module, SpatialLMProcessor]:
        """Open the model, freeze it but for what is trained, and give the processor the labels of the data."""
        name = str(self.model.model_name_or_path)
        processor = AutoProcessor.from_pretrained(name)
        rows = splits["train"]
        # Classes of the data, which replace those of the processor if one of them is new to it.
        if "layout" in rows.column_names:
            layouts = (Layout.parse(text, strict=True) for text in rows.with_format(None)["layout"])
            labels = sorted({box.label for layout in layouts for box in layout.boxes})
        else:
            labels = list(cast(Any, rows.features["box_labels"]).feature.names)
        new = [label for label in labels if label not in processor.classes]
        if new:
            logger.info("The model learns other objects: %s", ", ".join(new))
            processor.classes = labels
        bits = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)} if self.model.load_in_8bit else {}
        return adapted(AutoModelForPointCloudTextToText.from_pretrained(name, **bits), self.model), processor

    def build_trainer(self, model: nn.Module, splits: DatasetDict, processor: SpatialLMProcessor) -> PointTrainer:
        """Build the trainer."""
        data = self.data
        arguments = self.training
        # Folding changes the text of the answers, so it holds for training and evaluation alike.
        folds: dict[str, Any] = {"fold_quarter_turns": data.fold_quarter_turns}
        settings = {"turns": data.turns, "sizes": tuple(data.sizes), "min_points": data.min_box_points, **folds}
        return program.build_trainer(
            model,
            arguments,
            LayoutRows(splits["train"], processor, arguments.seed, **settings),
            LayoutRows(splits["validation"], processor, **folds) if "validation" in splits else None,
            cast(Any, processor),
            data_collator=LayoutCollator(processor, data.answer),
        )

    def evaluate(self, trainer: PointTrainer, splits: DatasetDict, processor: SpatialLMProcessor) -> Judgment:
        """Return loss and F1 of the answers of validation and test splits, and F1 of each class at overlap 0.25."""
        data = self.data
        metrics: dict[str, dict[str, float]] = {}
        by_class: dict[str, dict[str, float]] = {}
        for split in ("validation", "test"):
            if split not in splits:
                continue
            rows = LayoutRows(splits[split], processor, fold_quarter_turns=data.fold_quarter_turns)
            loss = trainer.evaluate(cast(Any, rows), metric_key_prefix=split)[f"{split}_loss"]
            answers = []
            truths = []
            most = data.max_new_tokens
            model: Any = trainer.model
            for row in (rows[number] for number in range(len(rows))):
                inputs = processor([row["room"]], task=data.answer).to(next(model.parameters()).device)
                # The grammar allows only tokens that continue a layout, so each answer can be parsed.
                grammar = processor.grammar(data.answer, max_new_tokens=most)
                with evaluation_mode(model):
                    ids = model.generate(**inputs, max_new_tokens=most, do_sample=False, logits_processor=grammar)
                # The answer follows the prompt, which generate returns too.
                answers += processor.decode_layouts(ids[:, inputs["input_ids"].shape[1] :], [row["room"]])
                truths.append(asked_of(row["layout"], data.answer))
            scores = {name: score.pooled_f1 for name, score in score_layouts(answers, truths).items()}
            # Classes that occur in neither answers nor truths have no score.
            scores = {name: pair for name, pair in scores.items() if not math.isnan(pair[0])}
            by_class[split] = {name: pair[0] for name, pair in scores.items()}
            means = np.mean(list(scores.values()), axis=0).tolist() if scores else [0.0, 0.0]
            metrics[split] = {"loss": loss, "f1_25": means[0], "f1_50": means[1]}
            trainer.log_metrics(split, metrics[split])
        return metrics, by_class

    def data_facts(self) -> dict[str, Any]:
        """Return how rooms are moved."""
        return {"points": "all", "augmentation": [f"turns: {self.data.turns}", f"sizes: {self.data.sizes}"]}

    def start(self) -> dict[str, Any]:
        """Return what the model starts from."""
        return {"name_or_path": self.model.model_name_or_path}


def train_layouts(argv: list[str] | None = None) -> RunReport:
    """Fine-tune a SpatialLM by words of a command line, by default those of this process; see `train`."""
    return program.train(Layouts.parse(argv))

"""Train detectors: rows with boxes, the trainer, and a run from arguments to card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from torch.utils.data import DataLoader
from transformers import AutoConfig
from transformers.trainer_utils import EvalLoopOutput

from hf_any3d.data.annotations.boxes import Changes, DrawPoints, Scene, build_changes
from hf_any3d.data.inputs import count_channels
from hf_any3d.data.tables.numpy_rows import column_of, near_origin, numpy_rows
from hf_any3d.data.torch_datasets import ArrowRows
from hf_any3d.evaluation.classification import Judgment
from hf_any3d.evaluation.detection import detection_metrics
from hf_any3d.integration.auto import AutoModelForPointCloudObjectDetection
from hf_any3d.model_card.run_report import RunReport
from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training import program
from hf_any3d.training.arguments import DataArguments, PointTrainingArguments, argument, json_mapping
from hf_any3d.training.rows import PreparedRows, whole_cloud
from hf_any3d.training.trainer import PointTrainer

# How the answers of an evaluation are chosen: all classes of each box, as average precision asks.
_RULE = {"threshold": 0.0, "scores": "per_class", "nms": "turned", "nms_per_class": True, "min_objectness": 0.05}


@dataclass
class DetectorArguments:
    """The detector."""

    model_name_or_path: str | None = argument(
        None,
        help="Directory or Hub name of a detector to fine-tune; its heads are reinitialized if the classes differ.",
    )
    model_config: dict | str | None = argument(
        None, help="JSON object with settings of Detr3DConfig, such as num_queries; by default those of 3DETR-m."
    )
    point_encoder: str | None = argument(
        None,
        help="Directory or Hub name of a pretrained point encoder to use with a new decoder. It is fine-tuned "
        "too, unless model_config sets freeze_point_encoder.",
    )
    point_encoder_config: dict | str | None = argument(
        None,
        help="JSON object with settings of that encoder, such as num_groups; scenes need more groups than objects.",
    )

    def __post_init__(self):
        self.model_config = json_mapping(self.model_config, "model_config")
        self.point_encoder_config = json_mapping(self.point_encoder_config, "point_encoder_config")
        if self.model_name_or_path is not None and self.point_encoder is not None:
            raise ValueError("--model_name_or_path and --point_encoder exclude each other; leave out one of them")


@dataclass
class DetectionDataArguments(DataArguments):
    """Training data with boxes."""

    dataset_name: str = field(default="rooms_with_boxes")
    num_points: int = argument(20_000, help="Points per scene.")
    up_axis: str = argument("z", help="Up axis; boxes require z.")
    augment: list[str] = argument(
        default_factory=list,
        help="Data augmentation, in order: cuboid, flip, turn, size, with settings such as "
        "turn:limit=0.5,along_axes=True.",
    )

    def __post_init__(self):
        super().__post_init__()
        check_settings(self, {"up_axis": ("z",)})  # about which the headings of boxes turn
        build_changes(self.augment)  # wrong names are errors before data are loaded


@dataclass
class DetectionTrainingArguments(PointTrainingArguments):
    """Training arguments with defaults for detectors."""

    metric_for_best_model: str | None = field(default="map_25")
    per_device_train_batch_size: int = field(default=8)
    per_device_eval_batch_size: int = field(default=8)
    learning_rate: float = field(default=5e-4)
    weight_decay: float = field(default=0.1)
    max_grad_norm: float = field(default=0.1)
    num_train_epochs: float = field(default=90)


class SceneRows(PreparedRows):
    """Rows `{"points": (num_points, channels), "labels": {"class_labels", "boxes"}}`, prepared when they are read.

    The dataset has `points`, `boxes`, `box_labels` and the columns that the processor's features need. Changes of
    complete scenes and points differ in each epoch; without them, points are those that a pipeline reads.
    """

    def __init__(
        self, dataset: Dataset, processor: PointCloudProcessor, changes: Changes | None = None, seed: int = 0
    ):
        # Arrays instead of lists of numbers, which would take many times the memory.
        self.dataset = numpy_rows(dataset)
        self.rows = ArrowRows(self.dataset)
        self.processor = processor
        self.changes = changes
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def prepare_row(self, number: int) -> dict[str, Any]:
        """Return a scene."""
        # Points and boxes are changed together, so all points are read before any are drawn.
        row = self.rows.__getitems__([number])[0]
        try:
            # Boxes are cast to float32, as points are.
            row, _ = near_origin(row)
            scene = Scene.of(row, whole_cloud(row, self.processor.features))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
        # The very points that a pipeline would draw, so that an evaluation here is one of the saved model.
        if self.changes is None:
            points = self.processor(row, return_tensors="np")["points"][0]
        else:
            # The same scene changes the same way in any process, and otherwise in each epoch.
            generator = np.random.default_rng((self.seed, self.epoch, number))
            # Before points are drawn: cuts take points away.
            scene = self.changes(scene, generator)
            points = DrawPoints(self.processor.num_points)(scene, generator).points
        labels = {
            "class_labels": torch.from_numpy(scene.labels),
            "boxes": torch.from_numpy(np.asarray(scene.boxes, dtype=np.float32)),
        }
        return {"points": torch.from_numpy(np.asarray(points, dtype=np.float32)), "labels": labels}


def collate_scenes(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate rows of `SceneRows`; scenes of different sizes are padded, with a mask."""
    points = [row["points"] for row in rows]
    batch: dict[str, Any] = {"points": torch.nn.utils.rnn.pad_sequence(points, batch_first=True)}
    counts = torch.tensor([len(cloud) for cloud in points])
    # Scenes of one size need no mask.
    if (counts != counts[0]).any():
        # (scenes, points) True for points of the scene, False for padding
        batch["points_mask"] = torch.arange(int(counts.max())) < counts.unsqueeze(1)
    return batch | {"labels": [row["labels"] for row in rows]}


class DetectionTrainer(PointTrainer):
    """Trainer whose evaluations report average precision."""

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compare the answers of the model with the objects of all scenes; see Trainer."""
        # Not Trainer's own loop, which collects arrays of the same shape: scenes have different numbers of objects.
        model = self._wrap_model(self.model, training=False, dataloader=dataloader)
        model.eval()
        names = cast(Detr3DForPointCloudObjectDetection, self.model).config.id2label or {}
        processor = cast(PointCloudProcessor, self.processing_class)
        predictions = []
        references = []
        losses = []
        for inputs in dataloader:
            inputs: dict[str, Any] = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = model(**inputs)
            # Per scene, the boxes and scores of all classes
            answers = processor.post_process_object_detection(outputs, **_RULE)
            answers = [{name: values.cpu().numpy() for name, values in answer.items()} for answer in answers]
            objects = [
                {"boxes": scene["boxes"].cpu().numpy(), "labels": scene["class_labels"].cpu().numpy()}
                for scene in inputs["labels"]
            ]
            # The loss of a batch is repeated for each scene, so that the mean below is over scenes.
            both = [*zip(answers, objects, [float(outputs.loss)] * len(answers), strict=True)]
            # In several processes the last batch repeats scenes, which are removed here.
            for prediction, reference, loss in self.accelerator.gather_for_metrics(both, use_gather_object=True):
                predictions.append(prediction)
                references.append(reference)
                losses.append(loss)
        scores = detection_metrics(predictions, references, names=[name for _, name in sorted(names.items())])
        # Kept apart: the Trainer logs numbers alone.
        self.class_scores = {name: scores.pop(f"class_ap_{name}") for name in ("25", "50")}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        metrics[f"{metric_key_prefix}_loss"] = float(np.mean(losses)) if losses else float("nan")
        return EvalLoopOutput(np.empty(0), None, metrics, len(predictions))


def box_classes(rows: Dataset) -> list[str]:
    """Return the names of the classes of boxes."""
    feature = getattr(rows.features.get("box_labels"), "feature", None)
    if not isinstance(feature, ClassLabel):
        raise ValueError(f"box_labels are {rows.features.get('box_labels')}; expected a list of ClassLabel")
    return feature.names


@dataclass
class Detection(program.TrainingTask):
    """Training of a detector."""

    model: DetectorArguments
    data: DetectionDataArguments
    training: DetectionTrainingArguments
    usage = "hf-any3d detect FILE --model {}"

    def build(self, splits: DatasetDict) -> tuple[Detr3DForPointCloudObjectDetection, PointCloudProcessor]:
        """Build model and processor."""
        classes = box_classes(splits["train"])
        features = self.data.features
        name = self.model.model_name_or_path
        assert isinstance(self.model.model_config, dict)
        labels = {"id2label": dict(enumerate(classes)), "label2id": {name: n for n, name in enumerate(classes)}}
        # A new detector; its size and number of headings follow from settings and boxes.
        if name is None:
            boxes = (box for row in column_of(splits["train"], "boxes") for box in row)
            # Without turned boxes a single bin says that all headings are 0.
            bins = 12 if any(abs(box[6]) > 1e-4 for box in boxes) else 1
            settings = {"num_heading_bins": bins, **self.model.model_config, **labels}
            if self.model.point_encoder is None:
                config = Detr3DConfig(**{"in_channels": count_channels(features), **settings})
                model = Detr3DForPointCloudObjectDetection(config)
            else:
                # A new decoder on a pretrained point encoder
                point_encoder = self.model.point_encoder
                freeze = settings.pop("freeze_point_encoder", False)
                assert point_encoder is not None and isinstance(self.model.point_encoder_config, dict)
                encoder = AutoConfig.from_pretrained(point_encoder, **self.model.point_encoder_config)
                model = Detr3DForPointCloudObjectDetection.from_point_encoder_pretrained(
                    point_encoder, freeze=freeze, encoder_config=encoder, **settings
                )
        else:
            config = AutoConfig.from_pretrained(name, **self.model.model_config)
            # Classes of the data replace those of the saved model, whose heads of another size start anew.
            config.id2label = labels["id2label"]
            config.label2id = labels["label2id"]
            model = AutoModelForPointCloudObjectDetection.from_pretrained(
                name, config=config, ignore_mismatched_sizes=True
            )
        # Before the training: such a scene would end it at some later step.
        for split, rows in splits.items():
            for row, numbers in enumerate(column_of(rows, "box_labels")):
                where = f"row {row} of the {split} split"
                most = model.config.num_queries
                if len(numbers) > most:
                    raise ValueError(f"{where} has {len(numbers)} boxes; expected at most {most}, num_queries")
                wrong = [number for number in numbers if not 0 <= number < len(classes)]
                if wrong:
                    raise ValueError(f"{where} has a box of class {wrong[0]}; expected 0 to {len(classes) - 1}")
        # Boxes are in the frame of the scene, in meters.
        frame = {"center": False, "scale": None, "up_axis": "z", "estimate_normals": self.data.estimate_normals}
        return model, PointCloudProcessor(num_points=self.data.num_points, features=features, **frame)

    def build_trainer(self, model: Any, splits: DatasetDict, processor: PointCloudProcessor) -> DetectionTrainer:
        """Build the trainer."""
        # A detector of boxes along the axes cannot learn from scenes turned by other angles.
        changes = build_changes(self.data.augment, along_axes=model.config.num_heading_bins == 1)
        return program.build_trainer(
            model,
            self.training,
            SceneRows(splits["train"], processor, changes, self.training.seed),
            SceneRows(splits["validation"], processor) if "validation" in splits else None,
            processor,
            trainer_class=DetectionTrainer,
            data_collator=collate_scenes,
        )

    def evaluate(self, trainer: DetectionTrainer, splits: DatasetDict, processor: PointCloudProcessor) -> Judgment:
        """Return metrics, and average precision of the classes at an overlap of 0.25, of validation and test."""
        metrics: dict[str, dict[str, float]] = {}
        by_class: dict[str, dict[str, float]] = {}
        for split in ("validation", "test"):
            if split in splits:
                scores = trainer.evaluate(SceneRows(splits[split], processor), metric_key_prefix=split)
                trainer.log_metrics(split, scores)
                metrics[split] = {}
                for key, value in scores.items():
                    name = key.removeprefix(f"{split}_")
                    if name == "loss" or name.endswith(("_25", "_50")):
                        metrics[split][name] = value
                by_class[split] = dict(trainer.class_scores["25"])
        return metrics, by_class

    def start(self) -> dict[str, Any]:
        """Return what the model starts from."""
        name = self.model.model_name_or_path or self.model.point_encoder
        return {} if name is None else {"name_or_path": name}


def train_detector(argv: list[str] | None = None) -> RunReport:
    """Train a detector by words of a command line, by default those of this process; see `train`."""
    return program.train(Detection.parse(argv))

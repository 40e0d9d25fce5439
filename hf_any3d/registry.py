"""Tables of tasks, model types, datasets and file formats by name. Each list stands here and nowhere else.

Everything reads it: registration with transformers, the command line, training programs, cards, pages, tests. It
imports nothing, so that a command answers before torch is loaded, and classes and modules are given by their names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Task:
    """Task of the models with one kind of head.

    Attributes:
        auto_class: Class that opens any of them, of `hf_any3d.integration.auto` or of transformers.
        kind: What messages call such a model.
        command: The command of `hf-any3d` that runs it.
        pipeline: Class of `hf_any3d.pipelines`; None for tasks without a pipeline.
    """

    auto_class: str
    kind: str
    command: str
    pipeline: str | None = None


TASKS = {
    "point-cloud-classification": Task(
        "AutoModelForPointCloudClassification", "a classifier", "predict", "PointCloudClassificationPipeline"
    ),
    "point-cloud-feature-extraction": Task(
        "AutoModel", "a model without a head", "features", "PointCloudFeatureExtractionPipeline"
    ),
    "point-cloud-object-detection": Task(
        "AutoModelForPointCloudObjectDetection", "a detector", "detect", "PointCloudObjectDetectionPipeline"
    ),
    "point-cloud-reconstruction": Task(
        "AutoModelForPointCloudReconstruction", "an autoencoder", "reconstruct", "PointCloudReconstructionPipeline"
    ),
    "point-cloud-segmentation": Task(
        "AutoModelForPointCloudSegmentation", "a segmentation model", "segment", "PointCloudSegmentationPipeline"
    ),
    "point-cloud-text-to-text": Task(
        "AutoModelForPointCloudTextToText", "a chat model", "chat", "PointCloudTextToTextPipeline"
    ),
    "zero-shot-point-cloud-classification": Task(
        "AutoModelForZeroShotPointCloudClassification",
        "a zero-shot classifier",
        "zero-shot",
        "ZeroShotPointCloudClassificationPipeline",
    ),
    "zero-shot-point-cloud-segmentation": Task(
        "AutoModelForZeroShotPointCloudSegmentation",
        "a segmentation model for parts by name",
        "segment",
        "ZeroShotPointCloudSegmentationPipeline",
    ),
    "pre-training": Task("AutoModelForPreTraining", "a pretrained point encoder without a head", "features"),
}
"""By the name of the pipeline."""
FEATURES = "point-cloud-feature-extraction"
"""The task of models without a head."""


@dataclass(frozen=True)
class ModelType:
    """A model type and its classes.

    Attributes:
        package: Folder in `modeling/` that defines the classes and has them in its `__init__.py`.
        config: Class of the configuration.
        base: Model without a head.
        heads: Task -> models with a head for it. Of several, the saved architecture decides.
        part_heads: Those for the parts of an object of a known category, not the objects of a scene.
        processor: Module and class below `hf_any3d`.
        wraps_encoder: Whether training starts from a pretrained encoder of another modality, which stays frozen.
        is_point_encoder: Whether training can start from a saved model of this type, pretrained on point clouds.
        has_parts: Whether a saved model may leave the weights of pretrained parts in other repositories.
    """

    package: str
    config: str
    base: str
    heads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    part_heads: tuple[str, ...] = ()
    processor: str = "processing.point_clouds.PointCloudProcessor"
    wraps_encoder: bool = False
    is_point_encoder: bool = False
    has_parts: bool = False

    def models(self) -> dict[str, str]:
        """Return its model classes with their tasks, the one without a head first."""
        named = {name: task for task, names in self.heads.items() for name in names}
        return {self.base: named.get(self.base, FEATURES)} | named


MODEL_TYPES = {
    "act3d": ModelType(
        "act",
        "ActConfig",
        "ActModel",
        {
            "point-cloud-classification": ("ActForPointCloudClassification",),
            "point-cloud-segmentation": ("ActForSemanticSegmentation", "ActForPartSegmentation"),
            "pre-training": ("ActForPreTraining",),
        },
        part_heads=("ActForPartSegmentation",),
        is_point_encoder=True,
    ),
    "any2point": ModelType(
        "any2point",
        "Any2PointConfig",
        "Any2PointModel",
        {
            "point-cloud-classification": ("Any2PointForPointCloudClassification",),
            "point-cloud-segmentation": ("Any2PointForSemanticSegmentation", "Any2PointForPartSegmentation"),
            "zero-shot-point-cloud-classification": ("Any2PointForZeroShotPointCloudClassification",),
        },
        part_heads=("Any2PointForPartSegmentation",),
        wraps_encoder=True,
        has_parts=True,
    ),
    "point_tokenizer": ModelType(
        "any2point",
        "PointTokenizerConfig",
        "PointTokenizerModel",
        {"point-cloud-classification": ("PointTokenizerForPointCloudClassification",)},
    ),
    "minigpt3d": ModelType(
        "minigpt3d",
        "MiniGPT3DConfig",
        "MiniGPT3DModel",
        {"point-cloud-text-to-text": ("MiniGPT3DForConditionalGeneration",)},
        processor="processing.chat.MiniGPT3DProcessor",
        has_parts=True,
    ),
    "act3d_autoencoder": ModelType(
        "act",
        "ActAutoencoderConfig",
        "ActAutoencoder",
        {"point-cloud-reconstruction": ("ActAutoencoder",)},
        has_parts=True,
    ),
    "pointnet": ModelType(
        "pointnet",
        "PointNetConfig",
        "PointNetModel",
        {"point-cloud-classification": ("PointNetForPointCloudClassification",)},
    ),
    "pointnet2": ModelType(
        "pointnet",
        "PointNet2Config",
        "PointNet2Model",
        {"point-cloud-classification": ("PointNet2ForPointCloudClassification",)},
    ),
    "dgcnn": ModelType(
        "dgcnn",
        "DgcnnConfig",
        "DgcnnModel",
        {
            "point-cloud-classification": ("DgcnnForPointCloudClassification",),
            "point-cloud-segmentation": ("DgcnnForSemanticSegmentation",),
        },
    ),
    "point_features": ModelType(
        "point_features",
        "PointFeaturesConfig",
        "PointFeaturesModel",
        {"point-cloud-classification": ("PointFeaturesForPointCloudClassification",)},
        has_parts=True,
    ),
    "local_features": ModelType(
        "local_features",
        "LocalFeaturesConfig",
        "LocalFeaturesModel",
        {"point-cloud-segmentation": ("LocalFeaturesForPointCloudSegmentation",)},
        processor="processing.local_features.LocalFeaturesProcessor",
    ),
    "detr3d": ModelType(
        "detr3d",
        "Detr3DConfig",
        "Detr3DModel",
        {"point-cloud-object-detection": ("Detr3DForPointCloudObjectDetection",)},
    ),
    "openshape": ModelType(
        "openshape",
        "OpenShapeConfig",
        "OpenShapeModel",
        {
            "point-cloud-classification": ("OpenShapeForPointCloudClassification",),
            "point-cloud-segmentation": ("OpenShapeForPointCloudSegmentation",),
            "zero-shot-point-cloud-classification": ("OpenShapeForZeroShotPointCloudClassification",),
        },
        is_point_encoder=True,
    ),
    "patchalign3d": ModelType(
        "patchalign3d",
        "PatchAlign3DConfig",
        "PatchAlign3DModel",
        {
            "point-cloud-classification": ("PatchAlign3DForPointCloudClassification",),
            "point-cloud-segmentation": ("PatchAlign3DForPointCloudSegmentation",),
            "zero-shot-point-cloud-segmentation": ("PatchAlign3DForZeroShotPointCloudSegmentation",),
            "pre-training": ("PatchAlign3DForPreTraining",),
        },
        is_point_encoder=True,
    ),
    "point_transformer_v3": ModelType(
        "point_transformer_v3",
        "PointTransformerV3Config",
        "PointTransformerV3Model",
        {
            "point-cloud-classification": ("PointTransformerV3ForPointCloudClassification",),
            "point-cloud-segmentation": ("PointTransformerV3ForPointCloudSegmentation",),
            "zero-shot-point-cloud-segmentation": ("PointTransformerV3ForZeroShotPointCloudSegmentation",),
        },
        processor="processing.voxels.PointTransformerV3Processor",
        is_point_encoder=True,
    ),
    "spatiallm": ModelType(
        "spatiallm",
        "SpatialLMConfig",
        "SpatialLMModel",
        # The last task is the one that commands and cards take: boxes are what most people want of a scan.
        {
            "point-cloud-text-to-text": ("SpatialLMForConditionalGeneration",),
            "point-cloud-object-detection": ("SpatialLMForConditionalGeneration",),
        },
        processor="processing.rooms.SpatialLMProcessor",
    ),
    "uni3d": ModelType(
        "uni3d",
        "Uni3DConfig",
        "Uni3DModel",
        {
            "point-cloud-classification": ("Uni3DForPointCloudClassification",),
            "point-cloud-segmentation": ("Uni3DForPointCloudSegmentation",),
            "zero-shot-point-cloud-classification": ("Uni3DForZeroShotPointCloudClassification",),
        },
        is_point_encoder=True,
    ),
}
"""By the `model_type` in config.json."""

NONE_OF_THESE = "none of these"
"""What is said of a cloud without a label."""
# What the labels of a dataset's rows belong to.
LABELED_CLOUDS, LABELED_POINTS, LABELED_WITH_TEXTS = "clouds", "points", "texts"
LABELED_WITH_BOXES = "boxes"
GENERATED = {
    "parts": LABELED_POINTS,  # objects assembled in code, each point with its part
    "rooms": LABELED_POINTS,  # rooms composed of the embedded shapes, each point with its object's class
    "rooms_with_boxes": LABELED_WITH_BOXES,  # rooms composed of the embedded shapes, a box around each object
    "rooms_with_layouts": LABELED_WITH_BOXES,  # such rooms with walls, doors and windows, and their layouts as text
}
"""Module of `hf_any3d.data.generated` -> kind of its labels; for the rest like `DATASETS`, which has them too."""
DATASETS: dict[str, str | None] = {
    "folder": LABELED_CLOUDS,  # a folder of point files and meshes, label = folder name
    "modelnet40": LABELED_CLOUDS,  # CAD models of 40 classes
    "modelnet40_fewshot": LABELED_CLOUDS,  # its few-shot episodes
    "modelnet40_generative": LABELED_WITH_TEXTS,  # its test set with questions for language models
    "nuscenes": LABELED_POINTS,  # sweeps of laser scanners on cars, each point with one of 16 classes
    "objaverse_captions": LABELED_WITH_TEXTS,  # colored objects with captions and conversations
    "parquet": None,  # local Parquet files with a column of points; their columns tell
    **GENERATED,
    "s3dis": LABELED_POINTS,  # scanned rooms of six areas, each point with one of 13 classes
    "scannet_detection": LABELED_WITH_BOXES,  # scanned rooms, boxes of 18 classes
    "scans_with_boxes": LABELED_WITH_BOXES,  # a folder of your own scans with files of boxes
    "scanobjectnn": LABELED_CLOUDS,  # objects cut out of scans of real rooms, 15 classes
    "semantickitti": LABELED_POINTS,  # sweeps of a laser scanner on a car, each point with one of 19 classes
    "sunrgbd": LABELED_WITH_BOXES,  # rooms seen by depth cameras, boxes of 10 classes
    "shapenet55": LABELED_CLOUDS,  # models of 55 categories, to pretrain on
    "shapenetpart": LABELED_POINTS,  # objects of 16 categories, each point with one of 50 parts
    "shapes": LABELED_CLOUDS,  # the small set of household objects in examples/data
}
"""Module of `hf_any3d.data.catalog`, whose `load(data_dir, **options)` returns a DatasetDict -> kind of its labels."""

FORMATS = {
    "3mf": "threemf",
    "bin": "lidar",
    "colmap": "colmap",
    "csv": "text",
    "e57": "e57",
    "glb": "gltf",
    "gltf": "gltf",
    "kitti": "lidar",
    "las": "las",
    "laz": "las",
    "npy": "npy",
    "npz": "npy",
    "nuscenes": "lidar",
    "obj": "obj",
    "off": "off",
    "pcd": "pcd",
    "ply": "ply",
    "pts": "text",
    "ptx": "ptx",
    "splat": "splats",
    "spz": "splats",
    "stl": "stl",
    "txt": "text",
    "xyz": "text",
}
"""Ending -> module of `hf_any3d.data.files` with `read(source) -> PointCloudData`, a mesh if the file has faces."""

PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".tgz", ".tar", ".7z", ".rar")
"""Endings of compressed files and archives, which are not opened."""


def task_of_class(name: str) -> str | None:
    """Return the task of a model class of this package, or None for other classes."""
    return next((models[name] for kind in MODEL_TYPES.values() if name in (models := kind.models())), None)


def pipeline_task(architectures: Sequence[str] | None) -> str:
    """Return the task of the pipeline for a saved model; feature extraction for models without a head."""
    task = task_of_class((architectures or [""])[0])
    return task if task is not None and TASKS[task].pipeline else FEATURES


def check_model_type(where: object, model_type: object) -> None:
    """Check that a model's type is one of this package."""
    if model_type not in MODEL_TYPES:
        known = ", ".join(sorted(MODEL_TYPES))
        raise ValueError(f"{where}: model_type {model_type!r} is not of this package; expected {known}")

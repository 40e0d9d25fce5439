"""Things are where people look first: in a module of that name, or among the public names of a package."""

import importlib

import pytest

# What is looked for: the first guess, a module of hf_any3d and a name in it.
GUESSES = {
    "farthest point sampling": "modeling.point_ops.sampling farthest_point_sample",
    "nearest neighbors on a GPU": "modeling.kernels.knn knn_fused",
    "Chamfer distance": "modeling.point_ops.chamfer chamfer_distance",
    "non-maximum suppression": "modeling.layers.boxes non_maximum_suppression",
    "Lovász loss": "modeling.layers.losses lovasz_softmax",
    "templates of zero-shot texts": "modeling.point_encoders.text_templates HYPOTHESIS_TEMPLATES",
    "templates of captions": "modeling.point_encoders.text_templates CAPTION_TEMPLATES",
    "codebook of ACT": "modeling.act.codebook Codebook",
    "rotary positions": "modeling.encoders.rotary rotation",
    "licenses of weights": "hub.licenses check_license",
    "list of published checkpoints": "published published_names",
    "layer of the guided adapter": "tuners.guided_adapter.layer GuidedAdapterLayer",
    "targets of LoRA": "tuners.targets encoder_linear_pattern",
    "up axis": "data.axes turn_up_axis",
    "tiling of scenes": "data.blocks split_into_blocks",
    "few-shot folds": "data.splits draw_fold",
    "augmentation": "data.transforms build_transform",
    "classes of S3DIS": "data.catalog.s3dis CLASS_NAMES",
    "ScanObjectNN": "data.catalog.scanobjectnn load",
    ".bin of KITTI": "data.files.bin read",
    "LAS": "data.files.las read",
    "PLY": "data.files.ply read",
    "Gaussian splats": "data.files.splats opaque_splats",
    "writers of files": "data.files.writer write_point_cloud",
    "chat template": "processing.chat_templates published_templates",
    "confusion matrix": "evaluation confusion_matrix",
    "confusion matrix, by its file": "evaluation.confusion confusion_matrix",
    "METEOR": "evaluation.caption_metrics meteor",
    "average precision of boxes": "evaluation.detection detection_metrics",
    "unknown score": "evaluation.unknown UnknownScore",
    "voting": "evaluation.voting evaluate_by_voting",
    "options of a training": "training.arguments PointTrainingArguments",
    "resuming a training": "training.checkpoints checkpoint_to_resume",
    "learning rate schedules": "training.schedules EpochCosine",
    "cross-validation": "training.few_scans.cross_validation draw_folds",
    "auto classes": "integration.auto AutoModelForPointCloudClassification",
    "registration of auto classes": "integration.registration register",
    "ONNX": "export.onnx export_onnx",
    "batches of requests": "serving.batching Batcher",
    "page of the viewer": "visualization.viewer viewer_page",
}


@pytest.mark.parametrize("thing", GUESSES)
def test_a_thing_is_where_one_looks_first(thing):
    module, name = GUESSES[thing].split()
    assert hasattr(importlib.import_module(f"hf_any3d.{module}"), name)

"""Point Transformer V3 and Find3D as the rest of the package knows them; see `hf_any3d.modeling.records`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_any3d.modeling.records import (
    CLASSES,
    DATASET,
    LICENSE,
    Converter,
    Method,
    ModelType,
    Program,
    Published,
    PublishedFile,
    Record,
    System,
    copy_of,
)

SYSTEM = System(
    title="Point Transformer V3 (Sonata, Concerto, Utonia)",
    convert="convert_ptv3",
    model_class="PointTransformerV3Model",
    code_license="Apache-2.0",
    weights_license="CC-BY-NC-4.0",
    license_source="the README of the program; cards on the Hub differ",
    page="https://github.com/Pointcept",
    # Their training data forbids it.
    non_commercial=True,
)
SUPERVISED = System(
    title="Point Transformer V3, supervised",
    convert="convert_ptv3",
    model_class="PointTransformerV3ForPointCloudSegmentation",
    code_license="MIT",
    license_source="the model card, which was not read here; the data sets of the training have terms of their own",
    page="https://github.com/Pointcept/PointTransformerV3",
)
FIND3D = System(
    title="Find3D",
    convert="convert_find3d",
    model_class="PointTransformerV3ForZeroShotPointCloudSegmentation",
    code_license="MIT",
    page="https://github.com/ziqi-ma/Find3D",
)
# The program pads and embeds texts with this model; transformers opens it.
FIND3D_TOWER = "google/siglip-base-patch16-224"
"""Model whose texts share the space of Find3D's points."""

# A conversion finds the sizes from the tensors, and must find these.
_BASE = {"hidden_sizes": [48, 96, 192, 384, 512], "depths": [3, 3, 3, 12, 3]}
_LARGE = {"hidden_sizes": [64, 128, 256, 512, 768], "depths": [3, 3, 3, 12, 3]}
_SMALL = {"hidden_sizes": [32, 64, 128, 256, 512], "depths": [2, 2, 2, 6, 2]}
_TINY = {"hidden_sizes": [16, 32, 64, 128, 256], "depths": [1, 1, 1, 3, 1]}
_UTONIA_SMALL = {"hidden_sizes": [36, 72, 144, 288, 432], "depths": [2, 2, 2, 6, 2]}
_UTONIA_TINY = {"hidden_sizes": [18, 36, 72, 144, 216], "depths": [2, 2, 2, 6, 2]}
_UTONIA = {"hidden_sizes": [54, 108, 216, 432, 576], "depths": [3, 3, 3, 12, 3]}


# Commits at which torch-pointcloud opens the files of a system, by the beginning of their names.
_COMMITS = {
    "sonata_small": "df99897472c09f91ba9288da0a034aacffc0b010",
    "concerto": "efc130718a564eba0ce4899318f3c20b19d9c752",
    "utonia": "9457f025e36c7001ee962a542f0d27a5b600e1e7",
}


def _pretrained(name: str, config: Mapping[str, Any], remark: str = "", preset: str | None = None) -> PublishedFile:
    # Files that it does not open may not be there.
    commit = next((commit for start, commit in _COMMITS.items() if name.startswith(start) and config), None)
    options = {} if preset is None else {"preset": preset}
    return PublishedFile(f"{name}.pth", config, remark, options=options, commit=commit)


def _with_head(name: str, config: Mapping[str, Any], preset: str | None = None) -> PublishedFile:
    # The probe is a file of its own beside the encoder's.
    file = _pretrained(name, config, "with a linear head for ScanNet", preset)
    parts = {"head": f"{name}_linear_prob_head_sc.pth"}
    return replace(file, parts=parts, model_class="PointTransformerV3ForPointCloudSegmentation")


def _copy(commit: str, mean_iou: str, dataset: str) -> Published:
    config = {**_SMALL, "block_rule": "branch", "depth_rule": "max"}
    options = {"trained_with": "pointcept-1.5.1", "dataset": dataset}
    return copy_of(SUPERVISED, commit, f"mIoU {mean_iou}", config, **options)


def _supervised(folder: str, dataset: str, sizes: Sequence[int] = (32, 64, 128, 256, 512)) -> PublishedFile:
    # All of them were trained with the first release, whose rules later ones changed.
    options = {"trained_with": "pointcept-1.5.1", "dataset": dataset}
    config = {"hidden_sizes": list(sizes), "block_rule": "branch", "depth_rule": "max"}
    return PublishedFile(f"{folder}/model/model_best.pth", config, "path not verified", options=options)


_PUBLISHED = {
    "facebook/sonata": Published(
        SYSTEM,
        {
            "base": _pretrained("sonata", _BASE),
            "small": _pretrained("sonata_small", _SMALL),
            "scannet": _with_head("sonata", _BASE),
        },
    ),
    "Pointcept/Sonata": Published(
        SYSTEM,
        {None: _pretrained("sonata_20251024", {}, "size not known; also for clouds without colors", "concerto")},
    ),
    "Pointcept/Concerto": Published(
        SYSTEM,
        {
            "tiny": _pretrained("concerto_tiny", _TINY),
            "small": _pretrained("concerto_small", _SMALL, preset="concerto"),
            "base": _pretrained("concerto_base", _BASE, preset="concerto"),
            "base-origin": _pretrained("concerto_base_origin", _BASE),
            "base-siglip": _pretrained("concerto_base_siglip", _BASE),
            "large": _pretrained("concerto_large", _LARGE, preset="concerto"),
            "large-origin": _pretrained("concerto_large_origin", _LARGE),
            "large-outdoor": _pretrained("concerto_large_outdoor", {}, "size not known", "concerto_outdoor"),
            "scannet": _with_head("concerto_large", _LARGE, preset="concerto"),
        },
    ),
    "Pointcept/Utonia": Published(
        SYSTEM,
        {
            "tiny": _pretrained("utonia_tiny", _UTONIA_TINY),
            "small": _pretrained("utonia_small", _UTONIA_SMALL),
            "base": _pretrained("utonia", _UTONIA),
            "scannet": _with_head("utonia", _UTONIA),
        },
    ),
    "Pointcept/PointTransformerV3": Published(
        SUPERVISED,
        {
            "scannet": _supervised("scannet-semseg-pt-v3m1-0-base", "scannet"),
            # Point prompt training: one model for several data sets, of which an option chooses one.
            "scannet-ppt": _supervised("scannet-semseg-pt-v3m1-1-ppt-extreme", "scannet", (48, 96, 192, 384, 512)),
            "scannet200": _supervised("scannet200-semseg-pt-v3m1-0-base", "scannet200"),
            "s3dis": _supervised("s3dis-semseg-pt-v3m1-0-rpe", "s3dis"),
            "s3dis-ppt": _supervised("s3dis-semseg-pt-v3m1-1-ppt-extreme", "s3dis", (32, 64, 128, 256, 384)),
            "nuscenes": _supervised("nuscenes-semseg-pt-v3m1-0-base", "nuscenes"),
        },
    ),
    "torch-pointcloud/ptv3-base.scannet20.pointcept": _copy(
        "3a8e0a66d76ecfb57d4dd0e4ef43de18f1491b41", "77.42", "scannet"
    ),
    "torch-pointcloud/ptv3-base.scannet200.pointcept": _copy(
        "1f1232df7e827ff72dd7cd038763e75516494462", "35.12", "scannet200"
    ),
    "torch-pointcloud/ptv3-base.s3dis-area5.pointcept": _copy(
        "95d483ef0e186a94ffbf8302a2bba9b5ba710344", "72.03", "s3dis"
    ),
    # Sizes are those of the supervised layout; a file holds no more than tensors.
    "ziqima/find3d-checkpt0": Published(
        FIND3D,
        {
            None: PublishedFile(
                "model.safetensors", {"text_embedding_size": 768, "block_rule": "full", "depth_rule": "max"}
            )
        },
        FIND3D_TOWER,
        FIND3D_TOWER,
    ),
}

_PROGRAM = ("Point Transformer V3", "convert_ptv3")
_ARGUMENTS = "JSON file with the constructor arguments of a supervised model with custom sizes"

RECORD = Record(
    model_types={
        "point_transformer_v3": ModelType(
            "PointTransformerV3Config",
            "PointTransformerV3Model",
            {
                "point-cloud-classification": ("PointTransformerV3ForPointCloudClassification",),
                "point-cloud-segmentation": ("PointTransformerV3ForPointCloudSegmentation",),
                "zero-shot-point-cloud-segmentation": ("PointTransformerV3ForZeroShotPointCloudSegmentation",),
            },
            processor="hf_any3d.processing.voxels.PointTransformerV3Processor",
            is_point_encoder=True,
            says="a transformer of voxels, for scans of rooms and streets",
            method=Method(
                "Point Transformer V3",
                "2312.10035",
                ("point_transformer_v3",),
                "A Point Transformer V3 of {config.num_hidden_layers} blocks reads voxels of a cloud",
            ),
            methods={
                "PointTransformerV3ForZeroShotPointCloudSegmentation": Method(
                    "Find3D",
                    "2411.13550",
                    ("find3d", "point_transformer_v3"),
                    "A Point Transformer V3 of {config.num_hidden_layers} blocks leads voxels of an object into a "
                    "space of texts",
                )
            },
        ),
    },
    converters={
        "convert_find3d": Converter(
            "point_transformer_v3.find3d", title="Find3D", takes={"arguments": _ARGUMENTS, **LICENSE}
        ),
        "convert_ptv3": Converter(
            "point_transformer_v3.convert",
            title="Point Transformer V3",
            takes={
                "preset": "preprocessing: sonata, concerto, concerto_outdoor, utonia_indoor, utonia_outdoor, "
                "utonia_objects, utonia_tabletop or utonia_city; by default the one for rooms",
                "trained_with": "Pointcept version that trained a supervised model: pointcept-1.5.1, "
                "pointcept-1.5.2 or pointcept-1.6. They differ in details that checkpoints do not "
                "record; published weights use the first",
                "arguments": _ARGUMENTS,
                **CLASSES,
                **LICENSE,
                **DATASET,
            },
        ),
    },
    programs=(
        # The first program whose pattern is among a file's names is taken, so the more special ones come first.
        Program("Find3D", "convert_find3d", {r"extractor\.embedding\.stem\.": {}}),
        Program(SUPERVISED.title, "convert_ptv3", {r"(backbone\.)?embedding\.stem\.conv\.": {}}),
        Program(*_PROGRAM, {r"(backbone\.)?embedding\.stem\.": {}}),
        # A file with tensors of nothing else.
        Program(*_PROGRAM, recognizer="point_transformer_v3.names.head_alone", role="head"),
    ),
    published=_PUBLISHED,
)

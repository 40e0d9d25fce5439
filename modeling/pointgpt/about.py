"""PointGPT as the rest of the package knows it; see `hf_any3d.modeling.records`."""

from hf_any3d.modeling.records import (
    CLASSES,
    DATASET,
    HEADS,
    LICENSE,
    PATCHES,
    POINTS,
    Converter,
    Method,
    ModelType,
    Program,
    Record,
)

RECORD = Record(
    model_types={
        "pointgpt": ModelType(
            "PointGPTConfig",
            "PointGPTModel",
            {
                "point-cloud-classification": ("PointGPTForPointCloudClassification",),
                "point-cloud-segmentation": ("PointGPTForSemanticSegmentation", "PointGPTForPartSegmentation"),
                "pre-training": ("PointGPTForPreTraining",),
            },
            part_heads=("PointGPTForPartSegmentation",),
            is_point_encoder=True,
            embeds_further_patches=True,
            says="a causal point transformer that generates patches",
            # The card tells how the transformer alone is used.
            cards={"PointGPTForPreTraining": "distilled student"},
            method=Method(
                "PointGPT",
                "2305.11487",
                ("pointgpt",),
                "A causal point transformer of {config.num_hidden_layers} blocks reads patches of points in the order "
                "of a chain",
            ),
        ),
    },
    converters={
        "convert_pointgpt": Converter(
            "pointgpt",
            title="PointGPT",
            takes={**CLASSES, **LICENSE, **DATASET, **PATCHES, **HEADS, **POINTS},
        )
    },
    # The table of `hf_any3d.conversions.point_starts` tells its files.
    programs=(Program("PointGPT", "convert_pointgpt"),),
)

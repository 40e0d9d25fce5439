"""ReCon as the rest of the package knows it; see `hf_any3d.modeling.records`."""

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
        "recon": ModelType(
            "ReconConfig",
            "ReconModel",
            {
                "point-cloud-classification": ("ReconForPointCloudClassification",),
                "point-cloud-segmentation": ("ReconForSemanticSegmentation", "ReconForPartSegmentation"),
                "zero-shot-point-cloud-classification": ("ReconForZeroShotPointCloudClassification",),
                "pre-training": ("ReconForPreTraining",),
            },
            part_heads=("ReconForPartSegmentation",),
            is_point_encoder=True,
            embeds_further_patches=True,
            exported_in=("features", "detector"),
            says="a point transformer with queries of image and text",
            method=Method(
                "ReCon",
                "2302.02318",
                ("recon",),
                "A point transformer of {config.num_hidden_layers} blocks reads patches of points, and three queries "
                "read the patches",
            ),
            cards={"ReconForPreTraining": "distilled student"},
        ),
    },
    converters={
        "convert_recon": Converter(
            "recon.convert",
            title="ReCon",
            takes={
                "kind": "pretrain, cls, partseg, zero_shot or transformer",
                "plain_blocks": "load a pretraining checkpoint into ACT blocks without image and text queries, as "
                "published ReCon adapters do; the network and its features differ from ReCon's",
                **CLASSES,
                **LICENSE,
                **DATASET,
                **PATCHES,
                **HEADS,
                **POINTS,
                "text_weight": "weight of the text query relative to the image query in zero-shot classification; "
                "by default 0.25, as for ModelNet40",
            },
        )
    },
    programs=(Program("ReCon", "convert_recon"),),
)

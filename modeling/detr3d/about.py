"""3DETR as the rest of the package knows it; see `hf_any3d.modeling.records`."""

from hf_any3d.modeling.records import (
    CLASSES,
    DATASET,
    HEADS,
    LICENSE,
    POINTS,
    Converter,
    Method,
    ModelType,
    Program,
    Record,
)

RECORD = Record(
    model_types={
        "detr3d": ModelType(
            "Detr3DConfig",
            "Detr3DModel",
            {"point-cloud-object-detection": ("Detr3DForPointCloudObjectDetection",)},
            exported=("Detr3DForPointCloudObjectDetection",),
            says="a detection transformer",
            method=Method(
                "3DETR",
                "2109.08141",
                ("3detr",),
                "A detection transformer with {config.decoder_layers} decoder layers reads {config.described_tokens}, "
                "and answers with {config.num_queries} boxes",
            ),
            composition="detector",
        ),
    },
    converters={
        "convert_detr3d": Converter(
            "detr3d.convert", title="3DETR", takes={**CLASSES, **LICENSE, **DATASET, **HEADS, **POINTS}
        ),
        "convert_detr3d_back": Converter("detr3d.convert"),
    },
    programs=(Program("3DETR", "convert_detr3d", {r"pre_encoder\.mlp_module\.": {}}),),
    directories={"detr3d": Program("3DETR", "convert_detr3d_back")},
    # On the authors' server alone; there is nothing on the hub to fetch.
    elsewhere=dict.fromkeys(
        (
            "scannet_ep1080.pth",
            "scannet_masked_ep1080.pth",
            "sunrgbd_ep1080.pth",
            "sunrgbd_masked_ep1080.pth",
        ),
        "https://dl.fbaipublicfiles.com/3detr/checkpoints",
    ),
)

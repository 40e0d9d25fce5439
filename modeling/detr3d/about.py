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
    Published,
    PublishedFile,
    Record,
    System,
    copy_of,
)

SYSTEM = System(
    title="3DETR",
    convert="convert_detr3d",
    model_class="Detr3DForPointCloudObjectDetection",
    code_license="Apache-2.0",
    page="https://github.com/facebookresearch/3detr",
    weights_license="Apache-2.0",
    license_source="the repository; nothing else is said of the weights, and the data sets have terms of their own",
)
# Of the encoder whose attention is limited to balls.
_MASKED = {"attention_radii": [0.4**2, 0.8**2, 1.2**2]}

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
    },
    programs=(Program("3DETR", "convert_detr3d", {r"pre_encoder\.mlp_module\.": {}}),),
    published={
        "facebookresearch/3detr": Published(
            SYSTEM,
            {
                "scannet": PublishedFile("scannet_ep1080.pth", reported="AP25 62.1, AP50 37.9"),
                "scannet-masked": PublishedFile("scannet_masked_ep1080.pth", _MASKED, reported="AP25 65.0, AP50 47.0"),
                "sunrgbd": PublishedFile("sunrgbd_ep1080.pth", reported="AP25 58.0, AP50 30.3"),
                "sunrgbd-masked": PublishedFile("sunrgbd_masked_ep1080.pth", _MASKED, reported="AP25 59.1, AP50 30.3"),
            },
            address="https://dl.fbaipublicfiles.com/3detr/checkpoints/{path}",
        ),
        "torch-pointcloud/3detr.scannet.fair": copy_of(
            SYSTEM, "d3f48ec2fcbf140d3888bcacc75b3a12489a61a2", "AP25 61.37, AP50 38.43", {}, dataset="scannet"
        ),
        "torch-pointcloud/3detr-m.scannet.fair": copy_of(
            SYSTEM, "85c4ce077acf1a9f611bbeb52a959c891a3c4b59", "AP25 65.46, AP50 47.26", _MASKED, dataset="scannet"
        ),
        "torch-pointcloud/3detr.sunrgbd.fair": copy_of(
            SYSTEM, "d7d255c9d852901826de4ac28d55b47a07afedd2", "AP25 58.08, AP50 29.64", {}, dataset="sunrgbd"
        ),
    },
)

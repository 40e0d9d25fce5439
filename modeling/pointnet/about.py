"""PointNet and PointNet++ as the rest of the package knows them; see `hf_any3d.modeling.records`."""

from hf_any3d.modeling.records import (
    CLASSES,
    GIT_FILES,
    LICENSE,
    Converter,
    Method,
    ModelType,
    Program,
    Published,
    PublishedFile,
    Record,
    System,
)

SYSTEM = System(
    title="PointNet",
    convert="convert_pointnet",
    model_class="PointNetForPointCloudClassification",
    code_license="MIT",
    weights_license="MIT",
    license_source="the repository, which the weights are part of; ModelNet40 is for academic research",
    page="https://github.com/vinits5/learning3d",
)

RECORD = Record(
    model_types={
        "pointnet": ModelType(
            "PointNetConfig",
            "PointNetModel",
            {"point-cloud-classification": ("PointNetForPointCloudClassification",)},
            exported=("PointNetForPointCloudClassification",),
            exported_in=("features",),
            says="a small baseline, trained from scratch",
            method=Method(
                "PointNet",
                "1612.00593",
                ("pointnet",),
                "A PointNet reads each point by itself and keeps the maximum of each feature over the cloud",
            ),
        ),
        "pointnet2": ModelType(
            "PointNet2Config",
            "PointNet2Model",
            {"point-cloud-classification": ("PointNet2ForPointCloudClassification",)},
            says="a small baseline, trained from scratch",
            method=Method(
                "PointNet++",
                "1706.02413",
                ("pointnet2",),
                "A PointNet++ groups points around centers, level by level, and keeps the maximum of each group's "
                "features",
            ),
        ),
    },
    converters={
        "convert_pointnet": Converter("pointnet", title="PointNet", takes={**CLASSES, **LICENSE}),
    },
    # Other programs name their first layer without the module around it.
    programs=(Program("PointNet", "convert_pointnet", {r"feature_model\.conv1\.": {}}),),
    published={
        "vinits5/learning3d": Published(
            SYSTEM,
            {
                "modelnet40": PublishedFile(
                    "pretrained/exp_classifier/models/best_model.t7",
                    {"hidden_sizes": [64, 64, 64, 128, 1024]},
                    "commit not verified; y up, and sensitive to where things face",
                    commit="f9d6d1726f48d39ace3ee78b864a323bfe625993",
                    sha256="4ab8d57bbea77e06bfebd64bc11343ed01621977fb0c5353e3bcd55e943710db",
                )
            },
            address=GIT_FILES,
        ),
    },
)

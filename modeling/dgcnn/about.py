"""DGCNN as the rest of the package knows it; see `hf_any3d.modeling.records`."""

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
    title="DGCNN",
    convert="convert_dgcnn",
    model_class="DgcnnForSemanticSegmentation",
    code_license="MIT",
    weights_license="MIT",
    license_source="the repository, which the weights are part of; S3DIS is for non-commercial research",
    page="https://github.com/antao97/dgcnn.pytorch",
)

RECORD = Record(
    model_types={
        "dgcnn": ModelType(
            "DgcnnConfig",
            "DgcnnModel",
            {
                "point-cloud-classification": ("DgcnnForPointCloudClassification",),
                "point-cloud-segmentation": ("DgcnnForSemanticSegmentation",),
            },
            says="a small baseline, trained from scratch",
            method=Method(
                "DGCNN",
                "1801.07829",
                ("dgcnn",),
                "A DGCNN reads the edges from each point to its {config.num_neighbors} neighbors, in space and among "
                "features",
            ),
        ),
    },
    converters={
        "convert_dgcnn": Converter(
            "dgcnn",
            title="DGCNN",
            takes={"num_neighbors": "neighbors of a point in each graph", **CLASSES, **LICENSE},
        ),
        "convert_dgcnn_back": Converter("dgcnn"),
    },
    # The last layer of the network for rooms, and a convolution on points before the head of the classifier
    programs=(Program("DGCNN", "convert_dgcnn", {r"conv9\.weight$": {}, r"conv5\.1\.running_mean$": {}}),),
    directories={"dgcnn": Program("DGCNN", "convert_dgcnn_back")},
    published={
        "antao97/dgcnn.pytorch": Published(
            SYSTEM,
            {
                "s3dis-area5": PublishedFile(
                    "pretrained/semseg_s3dis/model_5.t7",
                    {"in_channels": 9, "hidden_sizes": [1024]},
                    "trained on all areas but the fifth",
                    commit="16e42369abac430bbc6e7c4d9173589c3301d4e8",
                    sha256="ac72b13e1cdf0e73dac356aa77a429dcd08516fb81950356e2746a7d3e58fc6e",
                )
            },
            address=GIT_FILES,
        ),
    },
)

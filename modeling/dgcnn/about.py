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
    copy_of,
)

SYSTEM = System(
    title="DGCNN",
    convert="convert_dgcnn",
    model_class="DgcnnForSemanticSegmentation",
    code_license="MIT",
    weights_license="MIT",
    license_source="the repository, which the weights are part of; S3DIS and ModelNet40 are for research alone",
    page="https://github.com/antao97/dgcnn.pytorch",
)


def _room(commit: str, mean_iou: str) -> Published:
    # Trained on all areas but one, which the name tells.
    return copy_of(SYSTEM, commit, f"mIoU {mean_iou}", {"in_channels": 9, "hidden_sizes": [1024]})


def _shapes(commit: str, accuracy: str, **options: int) -> Published:
    config = {"hidden_sizes": [1024], "edge_widths": [[64], [64], [128], [256]], **options}
    name = "DgcnnForPointCloudClassification"
    return copy_of(SYSTEM, commit, f"accuracy {accuracy}", config, model_class=name, **options)


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
    },
    # The last layer of the network for rooms, and a convolution on points before the head of the classifier
    programs=(Program("DGCNN", "convert_dgcnn", {r"conv9\.weight$": {}, r"conv5\.1\.running_mean$": {}}),),
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
        "torch-pointcloud/dgcnn.s3dis-area1.an-tao": _room("29b230cfa3bfe1a5ed64a2e657d6648345d24c27", "69.19"),
        "torch-pointcloud/dgcnn.s3dis-area2.an-tao": _room("e3e348e10e62cc54f7889a15d95374acee33f397", "43.50"),
        "torch-pointcloud/dgcnn.s3dis-area3.an-tao": _room("70eb433b95f6688f1ba40d163be157918ec7b187", "68.73"),
        "torch-pointcloud/dgcnn.s3dis-area4.an-tao": _room("ca61a2189de6e6f3b2ebe0cda18ebc3838016a78", "50.68"),
        "torch-pointcloud/dgcnn.s3dis-area5.an-tao": _room("927f38e410d457f13ed14dde67ef1e2be27efafa", "50.30"),
        "torch-pointcloud/dgcnn.s3dis-area6.an-tao": _room("4fbb78ed5a74e3651e011f0f09aa0e631ec3660f", "75.60"),
        "torch-pointcloud/dgcnn.modelnet40-1024.an-tao": _shapes(
            "93b81edc579fde6ef6240c805fc2610298af738f", "93.27", num_neighbors=20
        ),
        "torch-pointcloud/dgcnn.modelnet40-2048.an-tao": _shapes(
            "6c428e23b4299afe7dee588c0b7d442827657699", "93.60", num_neighbors=40
        ),
    },
)

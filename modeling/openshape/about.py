"""OpenShape as the rest of the package knows it; see `hf_any3d.modeling.records`."""

from hf_any3d.modeling.records import (
    LICENSE,
    PATCHES,
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
    title="OpenShape",
    convert="convert_openshape",
    model_class="OpenShapeForZeroShotPointCloudClassification",
    code_license="Apache-2.0",
    weights_license="MIT",
    license_source="the cards of the repositories",
    page="https://github.com/Colin97/OpenShape_code",
)
# Two layouts were released: this one, aligned with ViT-bigG, and a smaller one for ViT-L and ViT-B.
_SCALED = PublishedFile("model.pt", {"hidden_size": 512, "num_groups": 384, "projection_dim": 1280})
_BIGG = ("OpenCLIP ViT-bigG-14 (laion2b_s39b_b160k)", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k")

RECORD = Record(
    model_types={
        "openshape": ModelType(
            "OpenShapeConfig",
            "OpenShapeModel",
            {
                "point-cloud-classification": ("OpenShapeForPointCloudClassification",),
                "point-cloud-segmentation": ("OpenShapeForPointCloudSegmentation",),
                "zero-shot-point-cloud-classification": ("OpenShapeForZeroShotPointCloudClassification",),
            },
            is_point_encoder=True,
            says="a point transformer aligned with texts",
            method=Method(
                "OpenShape",
                "2305.10764",
                ("openshape",),
                "A point transformer of {config.num_hidden_layers} blocks reads patches of points",
            ),
        ),
    },
    converters={
        "convert_openshape": Converter(
            "openshape.convert", title="OpenShape", takes={"group_radius": "radius of a patch", **LICENSE, **PATCHES}
        )
    },
    # Files differ in the modules around the patch encoder: all, some or none of these prefixes.
    programs=(Program("OpenShape", "convert_openshape", {r"(pc_encoder\.)?(ppat\.)?sa\.mlp_convs\.": {}}),),
    published={
        "OpenShape/openshape-pointbert-vitg14-rgb": Published(SYSTEM, {None: _SCALED}, *_BIGG),
        "OpenShape/openshape-pointbert-no-lvis": Published(SYSTEM, {None: _SCALED}, *_BIGG),
        "OpenShape/openshape-pointbert-shapenet": Published(SYSTEM, {None: _SCALED}, *_BIGG),
        "OpenShape/openshape-pointbert-vitl14-rgb": Published(
            SYSTEM,
            {None: PublishedFile("model.pt", {"hidden_size": 512, "num_groups": 64, "projection_dim": 768})},
            "CLIP ViT-L/14",
            "openai/clip-vit-large-patch14",
        ),
        "OpenShape/openshape-pointbert-vitb32-rgb": Published(
            SYSTEM,
            # Without a projection: the class token itself lies in the space of ViT-B/32.
            {None: PublishedFile("model.pt", {"hidden_size": 512, "num_groups": 64, "projection_dim": None})},
            "CLIP ViT-B/32",
            "openai/clip-vit-base-patch32",
        ),
    },
)

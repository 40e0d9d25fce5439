"""PatchAlign3D as the rest of the package knows it; see `hf_any3d.modeling.records`."""

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
    title="PatchAlign3D",
    convert="convert_patchalign3d",
    model_class="PatchAlign3DForZeroShotPointCloudSegmentation",
    code_license="MIT",
    page="https://arxiv.org/abs/2601.02457",
)

RECORD = Record(
    model_types={
        "patchalign3d": ModelType(
            "PatchAlign3DConfig",
            "PatchAlign3DModel",
            {
                "point-cloud-classification": ("PatchAlign3DForPointCloudClassification",),
                "point-cloud-segmentation": ("PatchAlign3DForPointCloudSegmentation",),
                "zero-shot-point-cloud-segmentation": ("PatchAlign3DForZeroShotPointCloudSegmentation",),
                "pre-training": ("PatchAlign3DForPreTraining",),
            },
            is_point_encoder=True,
            exported=("PatchAlign3DForPointCloudClassification",),
            exported_in=("features",),
            says="a point transformer whose patches are aligned with texts",
            method=Method(
                "PatchAlign3D",
                "2601.02457",
                ("patchalign3d",),
                "A point transformer of {config.num_hidden_layers} blocks reads patches of points",
            ),
        ),
    },
    converters={
        "convert_patchalign3d": Converter("patchalign3d.convert", title="PatchAlign3D", takes={**LICENSE, **PATCHES})
    },
    # MiniGPT-3D's point encoder has the same layers, without a projection beside them.
    programs=(Program("PatchAlign3D", "convert_patchalign3d", {r"encoder\.first_conv\.": {}}, entry="proj"),),
    published={
        "patchalign3d/patchalign3d-encoder": Published(
            SYSTEM,
            {
                None: PublishedFile(
                    "patchalign3d.pt", {"hidden_size": 384, "projection_dim": 1280}, "path not verified"
                )
            },
            "OpenCLIP ViT-bigG-14 (laion2b_s39b_b160k)",
            "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        ),
    },
)

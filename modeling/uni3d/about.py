"""Uni3D as the rest of the package knows it; see `hf_any3d.modeling.records`."""

from dataclasses import replace

from hf_any3d.modeling.records import (
    HEADS,
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
    title="Uni3D",
    convert="convert_uni3d",
    model_class="Uni3DForZeroShotPointCloudClassification",
    code_license="MIT",
    page="https://github.com/baaivision/Uni3D",
)
_UNVERIFIED = "path not verified"
# Size -> letters in the names of folders, channels and blocks.
_SIZES = {
    "tiny": ("ti", 192, 12),
    "small": ("s", 384, 12),
    "base": ("b", 768, 12),
    "large": ("l", 1024, 24),
    "giant": ("g", 1408, 40),
}


def _files() -> dict[str | None, PublishedFile]:
    """Return the checkpoints by their sizes, those without the shapes of LVIS, and three of the largest model."""
    files: dict[str | None, PublishedFile] = {}
    for size, (letters, width, depth) in _SIZES.items():
        config = {"hidden_size": width, "num_hidden_layers": depth, "projection_dim": 1024}
        # The program's own page names the files of these three sizes alone.
        remark = "" if size in ("base", "large", "giant") else _UNVERIFIED
        for ending in ("", "-no-lvis"):
            path = f"modelzoo/uni3d-{letters}{ending}/model.pt"
            files[f"{size}{ending}"] = PublishedFile(path, config, remark)
    # Further files of the giant model, named after benchmarks
    for name in ("lvis", "mnet40", "scanobjnn"):
        path = f"modelzoo/uni3d-g/{name}/model.pt"
        files[f"giant-{name}"] = replace(files["giant"], path=path, remark=_UNVERIFIED)
    return files


RECORD = Record(
    model_types={
        "uni3d": ModelType(
            "Uni3DConfig",
            "Uni3DModel",
            {
                "point-cloud-classification": ("Uni3DForPointCloudClassification",),
                "point-cloud-segmentation": ("Uni3DForPointCloudSegmentation",),
                "zero-shot-point-cloud-classification": ("Uni3DForZeroShotPointCloudClassification",),
            },
            is_point_encoder=True,
            exported=("Uni3DForPointCloudClassification",),
            exported_in=("features", "detector"),
            says="a point transformer aligned with texts",
            method=Method(
                "Uni3D",
                "2310.06773",
                ("uni3d",),
                "A point transformer of {config.num_hidden_layers} blocks reads patches of points",
            ),
        ),
    },
    converters={"convert_uni3d": Converter("uni3d.convert", title="Uni3D", takes={**LICENSE, **PATCHES, **HEADS})},
    programs=(Program("Uni3D", "convert_uni3d", {r"point_encoder\.visual\.": {}}),),
    published={"BAAI/Uni3D": Published(SYSTEM, _files(), "OpenCLIP EVA02-E-14-plus (laion2b_s9b_b144k)")},
)

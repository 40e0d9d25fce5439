"""The checkpoints that authors published on the hub and that open by their names: files, sizes, licenses.

`hf_any3d.published` fetches and converts them. To add one, add an entry to `PUBLISHED`; the program that it comes from
is a `System`, whose function in `hf_any3d.conversions` converts its files.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

SIZE_MARK = ":"
"""Between the name of a repository and a size, as in `BAAI/Uni3D:base`."""

ELSEWHERE = {
    f"{data}{encoder}_ep1080.pth": "https://dl.fbaipublicfiles.com/3detr/checkpoints"
    for data in ("scannet", "sunrgbd")
    for encoder in ("", "_masked")
}
"""Files of authors that are on no hub -> the folder on their server; `hf-any3d convert` converts them."""


def download_of(path: os.PathLike) -> str:
    """Return where the authors' file of this name is, as the end of a message; "" for others."""
    name = os.path.basename(path)
    return f"; the authors have it at {ELSEWHERE[name]}/{name}" if name in ELSEWHERE else ""


RECORD = "published"
"""Field of a converted config: where the weights come from, and their license."""


@dataclass(frozen=True)
class System:
    """Properties that the checkpoints of one program have in common.

    Args:
        title: Its name, for messages and tables.
        convert: Public function of `hf_any3d.conversions`, with arguments `checkpoint` and `output`.
        model_class: Public class that a converted checkpoint opens with.
        code_license: License of the authors' program.
        page: Page of the authors' program.
        weights_license: License of the weights.
        license_source: Where the latter is stated.
        non_commercial: Whether it forbids commercial use, so that the user must agree first.
    """

    title: str
    convert: str
    model_class: str
    code_license: str
    page: str
    weights_license: str = "as on the card of the repository"
    license_source: str = "that card, which was not read here"
    non_commercial: bool = False


@dataclass(frozen=True)
class PublishedFile:
    """One checkpoint.

    Args:
        path: The file in the repository.
        config: Fields that the config must have after the conversion, which finds them from the tensors.
        remark: What is not certain about it.
        parts: Further arguments of the conversion, to files of the repository, or folders, which end with "/"; "/" is
            the whole repository. `checkpoint` among them takes the place of the file.
        borrowed: Further arguments of the conversion, to parts of models in other repositories.
        options: Further arguments of the conversion, to their values.
        model_class: Class that it opens with, if that is not the one of the system.
        commit: Of a file that is in a git repository on GitHub and not on the hub: a commit with it.
        sha256: Of such a file: its checksum.
    """

    path: str
    config: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    borrowed: Mapping[str, "BorrowedPart"] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    model_class: str | None = None
    commit: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class BorrowedPart:
    """Tensors of a model in the layout of transformers, which a checkpoint lacks.

    Args:
        repository: Its name on the hub.
        prefixes: Beginnings of the names of the tensors that are used.
    """

    repository: str
    prefixes: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """A repository on the hub or on GitHub with checkpoints of a system.

    Args:
        system: The system.
        files: Checkpoints by size; the key is None in a repository with a single one.
        texts: Model whose texts share the space of the features; None if the features are not aligned with texts.
        text_tower: Repository of that model in the form of transformers; None if transformers has no class for it.
    """

    system: System
    files: Mapping[str | None, PublishedFile]
    texts: str | None = None
    text_tower: str | None = None


OPENSHAPE = System(
    title="OpenShape",
    convert="convert_openshape",
    model_class="OpenShapeForZeroShotPointCloudClassification",
    code_license="Apache-2.0",
    weights_license="MIT",
    license_source="the cards of the repositories",
    page="https://github.com/Colin97/OpenShape_code",
)
UNI3D = System(
    title="Uni3D",
    convert="convert_uni3d",
    model_class="Uni3DForZeroShotPointCloudClassification",
    code_license="MIT",
    page="https://github.com/baaivision/Uni3D",
)
PATCHALIGN3D = System(
    title="PatchAlign3D",
    convert="convert_patchalign3d",
    model_class="PatchAlign3DForZeroShotPointCloudSegmentation",
    code_license="MIT",
    page="https://arxiv.org/abs/2601.02457",
)

PTV3 = System(
    title="Point Transformer V3 (Sonata, Concerto, Utonia)",
    convert="convert_ptv3",
    model_class="PointTransformerV3Model",
    code_license="Apache-2.0",
    weights_license="CC-BY-NC-4.0",
    license_source="the README of the program; cards on the hub differ",
    page="https://github.com/Pointcept",
    non_commercial=True,
)
PTV3_SUPERVISED = System(
    title="Point Transformer V3, supervised",
    convert="convert_ptv3",
    model_class="PointTransformerV3ForPointCloudSegmentation",
    code_license="MIT",
    license_source="that card, which was not read here; the data sets of the training have terms of their own",
    page="https://github.com/Pointcept/PointTransformerV3",
)
FIND3D = System(
    title="Find3D",
    convert="convert_find3d",
    model_class="PointTransformerV3ForZeroShotPointCloudSegmentation",
    code_license="MIT",
    page="https://github.com/ziqi-ma/Find3D",
)
FIND3D_TOWER = "google/siglip-base-patch16-224"
"""Model whose texts share the space of Find3D's points."""
MINIGPT3D = System(
    title="MiniGPT-3D",
    convert="convert_minigpt3d",
    model_class="MiniGPT3DForConditionalGeneration",
    code_license="CC-BY-NC-SA-4.0",
    weights_license="CC-BY-NC-SA-4.0",
    license_source="the README of the program; parts have their own licenses",
    page="https://github.com/TangYuan96/MiniGPT-3D",
    non_commercial=True,
)
SPATIALLM = System(
    title="SpatialLM 1.1",
    convert="convert_spatiallm",
    model_class="SpatialLMForConditionalGeneration",
    code_license="Llama 3.2 Community License",
    weights_license="CC-BY-NC-4.0",
    license_source="the README of the program, for the point encoder; language models have their own licenses",
    page="https://github.com/manycore-research/SpatialLM",
    non_commercial=True,
)
_IN_GIT = "the repository, which the weights are part of"
DGCNN = System(
    title="DGCNN",
    convert="convert_dgcnn",
    model_class="DgcnnForSemanticSegmentation",
    code_license="MIT",
    weights_license="MIT",
    license_source=f"{_IN_GIT}; S3DIS is for non-commercial research",
    page="https://github.com/antao97/dgcnn.pytorch",
)
POINTNET = System(
    title="PointNet",
    convert="convert_pointnet",
    model_class="PointNetForPointCloudClassification",
    code_license="MIT",
    weights_license="MIT",
    license_source=f"{_IN_GIT}; ModelNet40 is for academic research",
    page="https://github.com/vinits5/learning3d",
)

_BIGG = ("OpenCLIP ViT-bigG-14 (laion2b_s39b_b160k)", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k")
_EVA02_E = "OpenCLIP EVA02-E-14-plus (laion2b_s9b_b144k)"
_SCALED = {"hidden_size": 512, "num_groups": 384, "projection_dim": 1280}
_UNVERIFIED = "path not verified"
# Size -> letters in the names of folders, channels and blocks.
_UNI3D = {
    "tiny": ("ti", 192, 12),
    "small": ("s", 384, 12),
    "base": ("b", 768, 12),
    "large": ("l", 1024, 24),
    "giant": ("g", 1408, 40),
}


_UNI3D_FILES: dict[str | None, PublishedFile] = {
    f"{size}{ending}": PublishedFile(
        f"modelzoo/uni3d-{letters}{ending}/model.pt",
        {"hidden_size": width, "num_hidden_layers": depth, "projection_dim": 1024},
        "" if size in ("base", "large", "giant") else _UNVERIFIED,
    )
    for size, (letters, width, depth) in _UNI3D.items()
    for ending in ("", "-no-lvis")
}
_UNI3D_FILES |= {
    f"giant-{name}": replace(_UNI3D_FILES["giant"], path=f"modelzoo/uni3d-g/{name}/model.pt", remark=_UNVERIFIED)
    for name in ("lvis", "mnet40", "scanobjnn")
}
_BASE = {"hidden_sizes": [48, 96, 192, 384, 512], "depths": [3, 3, 3, 12, 3]}
_LARGE = {"hidden_sizes": [64, 128, 256, 512, 768], "depths": [3, 3, 3, 12, 3]}
_UTONIA = {"hidden_sizes": [54, 108, 216, 432, 576], "depths": [3, 3, 3, 12, 3]}
_SEGMENTATION = "PointTransformerV3ForPointCloudSegmentation"


def _ptv3(name: str, config: Mapping[str, Any], remark: str = "", preset: str | None = None) -> PublishedFile:
    return PublishedFile(f"{name}.pth", config, remark, options={} if preset is None else {"preset": preset})


def _ptv3_with_head(name: str, config: Mapping[str, Any], preset: str | None = None) -> PublishedFile:
    parts = {"head": f"{name}_linear_prob_head_sc.pth"}
    file = _ptv3(name, config, "with a linear head for ScanNet", preset)
    return replace(file, parts=parts, model_class=_SEGMENTATION)


def _supervised(folder: str, dataset: str, sizes: Sequence[int] = (32, 64, 128, 256, 512)) -> PublishedFile:
    # All of them were trained with the first release, whose rules later ones changed.
    options = {"trained_with": "pointcept-1.5.1", "dataset": dataset}
    config = {"hidden_sizes": list(sizes), "block_rule": "branch", "depth_rule": "max"}
    return PublishedFile(f"{folder}/model/model_best.pth", config, _UNVERIFIED, options=options)


_WEIGHTS = "params_weight/"
_MINIGPT3D_FILE = PublishedFile(
    f"{_WEIGHTS}MiniGPT_3D_stage_3/MiniGPT_3D_stage_3.pth",
    parts={
        "second_checkpoint": f"{_WEIGHTS}MiniGPT_3D_stage_4/MiniGPT_3D_stage_4.pth",
        "point_encoder": f"{_WEIGHTS}pc_encoder/point_model.pth",
        "language_model": f"{_WEIGHTS}Phi_2/",
    },
    # The authors' program loads BLIP-2's own file; this repository has the same model.
    borrowed={"qformer": BorrowedPart("Salesforce/blip2-flan-t5-xxl", ("qformer.", "query_tokens"))},
    options={"store_parts": True},
)

# Weights may be in one file or several, so the repository is fetched as a folder.
_SPATIALLM = Published(SPATIALLM, {None: PublishedFile("config.json", parts={"checkpoint": "/"})})


PUBLISHED: dict[str, Published] = {
    **{
        f"OpenShape/openshape-pointbert-{variant}": Published(
            OPENSHAPE, {None: PublishedFile("model.pt", _SCALED)}, *_BIGG
        )
        for variant in ("vitg14-rgb", "no-lvis", "shapenet")
    },
    "OpenShape/openshape-pointbert-vitl14-rgb": Published(
        OPENSHAPE,
        {None: PublishedFile("model.pt", {"hidden_size": 512, "num_groups": 64, "projection_dim": 768})},
        "CLIP ViT-L/14",
        "openai/clip-vit-large-patch14",
    ),
    "OpenShape/openshape-pointbert-vitb32-rgb": Published(
        OPENSHAPE,
        {None: PublishedFile("model.pt", {"hidden_size": 512, "num_groups": 64, "projection_dim": None})},
        "CLIP ViT-B/32",
        "openai/clip-vit-base-patch32",
    ),
    "BAAI/Uni3D": Published(UNI3D, _UNI3D_FILES, _EVA02_E),
    "facebook/sonata": Published(
        PTV3,
        {
            "base": _ptv3("sonata", _BASE),
            "small": _ptv3("sonata_small", {}, "size not known"),
            "scannet": _ptv3_with_head("sonata", _BASE),
        },
    ),
    "Pointcept/Sonata": Published(
        PTV3, {None: _ptv3("sonata_20251024", {}, "size not known; also for clouds without colors", "concerto")}
    ),
    "Pointcept/Concerto": Published(
        PTV3,
        {
            "tiny": _ptv3("concerto_tiny", {}, "size not known"),
            "small": _ptv3("concerto_small", {}, "size not known", "concerto"),
            "base": _ptv3("concerto_base", _BASE, preset="concerto"),
            "base-origin": _ptv3("concerto_base_origin", _BASE),
            "base-siglip": _ptv3("concerto_base_siglip", _BASE),
            "large": _ptv3("concerto_large", _LARGE, preset="concerto"),
            "large-outdoor": _ptv3("concerto_large_outdoor", {}, "size not known", "concerto_outdoor"),
            "scannet": _ptv3_with_head("concerto_large", _LARGE, preset="concerto"),
        },
    ),
    "Pointcept/Utonia": Published(
        PTV3, {"base": _ptv3("utonia", _UTONIA), "scannet": _ptv3_with_head("utonia", _UTONIA)}
    ),
    "Pointcept/PointTransformerV3": Published(
        PTV3_SUPERVISED,
        {
            "scannet": _supervised("scannet-semseg-pt-v3m1-0-base", "scannet"),
            "scannet-ppt": _supervised("scannet-semseg-pt-v3m1-1-ppt-extreme", "scannet", (48, 96, 192, 384, 512)),
            "scannet200": _supervised("scannet200-semseg-pt-v3m1-0-base", "scannet200"),
            "s3dis": _supervised("s3dis-semseg-pt-v3m1-0-rpe", "s3dis"),
            "s3dis-ppt": _supervised("s3dis-semseg-pt-v3m1-1-ppt-extreme", "s3dis", (32, 64, 128, 256, 384)),
            "nuscenes": _supervised("nuscenes-semseg-pt-v3m1-0-base", "nuscenes"),
        },
    ),
    "YuanTang96/MiniGPT-3D": Published(MINIGPT3D, {None: _MINIGPT3D_FILE}),
    "manycore-research/SpatialLM1.1-Qwen-0.5B": _SPATIALLM,
    "manycore-research/SpatialLM1.1-Llama-1B": _SPATIALLM,
    "ysmao/SpatialLM1.1-Qwen-0.5B-ARKitScenes-SFT": _SPATIALLM,
    "ysmao/SpatialLM1.1-Qwen-0.5B-Structured3D-SFT": _SPATIALLM,
    "ziqima/find3d-checkpt0": Published(
        FIND3D,
        {
            None: PublishedFile(
                "model.safetensors", {"text_embedding_size": 768, "block_rule": "full", "depth_rule": "max"}
            )
        },
        FIND3D_TOWER,
        FIND3D_TOWER,
    ),
    "patchalign3d/patchalign3d-encoder": Published(
        PATCHALIGN3D,
        {None: PublishedFile("patchalign3d.pt", {"hidden_size": 384, "projection_dim": 1280}, _UNVERIFIED)},
        *_BIGG,
    ),
    "antao97/dgcnn.pytorch": Published(
        DGCNN,
        {
            "s3dis-area5": PublishedFile(
                "pretrained/semseg_s3dis/model_5.t7",
                {"in_channels": 9, "hidden_sizes": [1024]},
                "trained on all areas but the fifth",
                commit="16e42369abac430bbc6e7c4d9173589c3301d4e8",
                sha256="ac72b13e1cdf0e73dac356aa77a429dcd08516fb81950356e2746a7d3e58fc6e",
            )
        },
    ),
    "vinits5/learning3d": Published(
        POINTNET,
        {
            "modelnet40": PublishedFile(
                "pretrained/exp_classifier/models/best_model.t7",
                {"hidden_sizes": [64, 64, 64, 128, 1024]},
                "commit not verified; y up, and sensitive to where things face",
                commit="f9d6d1726f48d39ace3ee78b864a323bfe625993",
                sha256="4ab8d57bbea77e06bfebd64bc11343ed01621977fb0c5353e3bcd55e943710db",
            )
        },
    ),
}
"""Name of the repository, on the hub or on GitHub -> what is published there."""


def terms_of(system: System) -> dict[str, Any]:
    """Return the part of the record in a converted config that states the licenses."""
    return {
        "weights_license": system.weights_license,
        "code_license": system.code_license,
        "non_commercial": system.non_commercial,
    }


def non_commercial_record(config: Any) -> Mapping[str, Any] | None:
    """Return the record of the published weights in a model, or in a part of it, that may not be used commercially."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    records = (getattr(part, RECORD, None) for part in parts)
    return next((record for record in records if record and record.get("non_commercial")), None)


def is_published(name: object) -> bool:
    """Return whether a name, possibly with a size behind it, is that of a published checkpoint, not of a directory."""
    return isinstance(name, str) and name.partition(SIZE_MARK)[0] in PUBLISHED and not os.path.exists(name)


def find_published(name: str, size: str | None = None) -> tuple[str, str | None, Published]:
    """Return the repository, the size, and what is published, for a repository of `PUBLISHED`, or `name:size`."""
    repository, mark, stated = name.partition(SIZE_MARK)
    found = PUBLISHED[repository]
    if mark and size is not None and size != stated:
        raise ValueError(f"{name}: size={size!r} is given too; expected one size")
    size = stated if mark else size
    if size not in found.files:
        sizes = [known for known in found.files if known is not None]
        if not sizes:
            raise ValueError(f"{repository}: size={size!r}; the repository has a single checkpoint, leave size out")
        seen = "no size is given" if size is None else f"size={size!r}"
        raise ValueError(
            f"{repository}: {seen}; expected one of {', '.join(sizes)}, as size=… or in the name: "
            f"{repository}{SIZE_MARK}{sizes[0]}"
        )
    return repository, size, found

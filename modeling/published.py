"""The checkpoints that authors published on the hub and that open by their names: files, sizes, licences.

`hf_any3d.opening` fetches and converts them. To add one, add an entry to `PUBLISHED`; the program that it comes from
is a `System`, whose function in `hf_any3d.conversions` converts its files.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SIZE_MARK = ":"
"""Between the name of a repository and a size, as in `BAAI/Uni3D:base`."""

RECORD = "published"
"""Field of a converted config: where the weights come from, and their licence."""


@dataclass(frozen=True)
class System:
    """What the checkpoints of one program have in common.

    Args:
        title: Its name, for messages and tables.
        convert: Public function of `hf_any3d.conversions` that converts one file, `(checkpoint, output)`.
        model_class: Public class that a converted checkpoint opens with.
        mark: Regular expression at the start of some tensor's name in each of its files, and of none in those of other
            systems; prefixes of parallel training are removed first.
        code_license: Licence of the authors' program.
        weights_license: Licence of the weights.
        license_source: Where the latter is stated.
        non_commercial: Whether it forbids commercial use, so that the user must agree first.
        page: Page of the authors' program.
    """

    title: str
    convert: str
    model_class: str
    mark: str
    code_license: str
    weights_license: str
    license_source: str
    page: str
    non_commercial: bool = False


@dataclass(frozen=True)
class PublishedFile:
    """One checkpoint.

    Args:
        path: The file in the repository.
        config: Fields that the config must have after the conversion, which finds them from the tensors.
        remark: What is not certain about it.
    """

    path: str
    config: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""


@dataclass(frozen=True)
class Published:
    """A repository on the hub with checkpoints of a system.

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
    mark=r"(pc_encoder\.)?(ppat\.)?sa\.mlp_convs\.",
    code_license="Apache-2.0",
    weights_license="MIT",
    license_source="the cards of the repositories",
    page="https://github.com/Colin97/OpenShape_code",
)
UNI3D = System(
    title="Uni3D",
    convert="convert_uni3d",
    model_class="Uni3DForZeroShotPointCloudClassification",
    mark=r"point_encoder\.visual\.",
    code_license="MIT",
    weights_license="as on the card of the repository",
    license_source="the card, which was not read here",
    page="https://github.com/baaivision/Uni3D",
)
PATCHALIGN3D = System(
    title="PatchAlign3D",
    convert="convert_patchalign3d",
    model_class="PatchAlign3DForZeroShotPointCloudSegmentation",
    mark=r"encoder\.first_conv\.",
    code_license="MIT",
    weights_license="as on the card of the repository",
    license_source="the card, which was not read here",
    page="https://arxiv.org/abs/2601.02457",
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


def _uni3d_files() -> dict[str | None, PublishedFile]:
    files: dict[str | None, PublishedFile] = {}
    for size, (letters, width, depth) in _UNI3D.items():
        config = {"hidden_size": width, "num_hidden_layers": depth, "projection_dim": 1024}
        remark = "" if letters in ("b", "l", "g") else _UNVERIFIED
        for ending in ("", "-no-lvis"):
            files[size + ending] = PublishedFile(f"modelzoo/uni3d-{letters}{ending}/model.pt", config, remark)
    for benchmark in ("lvis", "mnet40", "scanobjnn"):
        path = f"modelzoo/uni3d-g/{benchmark}/model.pt"
        files[f"giant-{benchmark}"] = PublishedFile(path, files["giant"].config, _UNVERIFIED)
    return files


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
    "BAAI/Uni3D": Published(UNI3D, _uni3d_files(), _EVA02_E),
    "patchalign3d/patchalign3d-encoder": Published(
        PATCHALIGN3D,
        {None: PublishedFile("patchalign3d.pt", {"hidden_size": 384, "projection_dim": 1280}, _UNVERIFIED)},
        *_BIGG,
    ),
}
"""Name on the hub -> what is published there."""


def is_published(name: object) -> bool:
    """Return whether a name, possibly with a size behind it, is that of a published checkpoint, not of a directory."""
    return isinstance(name, str) and name.partition(SIZE_MARK)[0] in PUBLISHED and not os.path.exists(name)


def find_published(name: str, size: str | None = None) -> tuple[str, str | None, Published]:
    """Return the repository, the size, and what is published there.

    Args:
        name: Name of a repository of `PUBLISHED`, or `name:size`.
        size: The size, unless the name has it.

    Raises:
        ValueError: The repository has no such size, two are given, or none is given where there are several.
    """
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

"""3D point clouds in the Hugging Face ecosystem: models, adapters, data, training and pipelines.

Importing this package registers its models with transformers and its adapters with PEFT.
"""

import importlib
import importlib.util
import sys
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

from hf_any3d.utils.messages import without_remarks as _without_remarks
from hf_any3d.utils.threads import share_processors as _share_processors
from hf_any3d.version import __version__ as __version__

_models = _Path(__file__).parent / "modeling"
if not _models.is_dir():
    raise ImportError(
        f"{_models} is not a link to a folder: this checkout was made without symbolic links; run `git config "
        "core.symlinks true` and check it out again (on Windows, in developer mode), or install a wheel"
    )

_share_processors()
from hf_any3d.registry import MODEL_TYPES as _MODEL_TYPES  # noqa: E402
from hf_any3d.utils.public_names import names_for_type_checkers as _names_for_type_checkers  # noqa: E402

if TYPE_CHECKING:
    from hf_any3d.array_segmentation import Segmentation as Segmentation, segment as segment
    from hf_any3d.chat import ChatSession as ChatSession, MiniGPT3DProcessor as MiniGPT3DProcessor
    from hf_any3d.data import PointCloud as PointCloud, load_point_dataset as load_point_dataset
    from hf_any3d.data.files import (
        example_file as example_file,
        read_point_cloud as read_point_cloud,
        write_labels as write_labels,
    )
    from hf_any3d.data.las_classes import ASPRS_CLASSES as ASPRS_CLASSES
    from hf_any3d.data.text_bank import TextBank as TextBank
    from hf_any3d.integration.auto import (
        AutoModelForPointCloudClassification as AutoModelForPointCloudClassification,
        AutoModelForPointCloudObjectDetection as AutoModelForPointCloudObjectDetection,
        AutoModelForPointCloudReconstruction as AutoModelForPointCloudReconstruction,
        AutoModelForPointCloudSegmentation as AutoModelForPointCloudSegmentation,
        AutoModelForPointCloudTextToText as AutoModelForPointCloudTextToText,
        AutoModelForZeroShotPointCloudClassification as AutoModelForZeroShotPointCloudClassification,
        AutoModelForZeroShotPointCloudSegmentation as AutoModelForZeroShotPointCloudSegmentation,
    )

    # The classes of models are named in the registry.
    from hf_any3d.modeling.act import *  # noqa: F403
    from hf_any3d.modeling.any2point import *  # noqa: F403
    from hf_any3d.modeling.detr3d import *  # noqa: F403
    from hf_any3d.modeling.dgcnn import *  # noqa: F403
    from hf_any3d.modeling.encoders import UnsupportedEncoder as UnsupportedEncoder
    from hf_any3d.modeling.local_features import *  # noqa: F403
    from hf_any3d.modeling.minigpt3d import *  # noqa: F403
    from hf_any3d.modeling.openshape import *  # noqa: F403
    from hf_any3d.modeling.patchalign3d import *  # noqa: F403
    from hf_any3d.modeling.point_features import *  # noqa: F403
    from hf_any3d.modeling.point_transformer_v3 import *  # noqa: F403
    from hf_any3d.modeling.pointnet import *  # noqa: F403
    from hf_any3d.modeling.spatiallm import *  # noqa: F403
    from hf_any3d.modeling.uni3d import *  # noqa: F403
    from hf_any3d.processing.local_features import LocalFeaturesProcessor as LocalFeaturesProcessor
    from hf_any3d.processing.point_clouds import PointCloudProcessor as PointCloudProcessor
    from hf_any3d.processing.rooms import SpatialLMProcessor as SpatialLMProcessor
    from hf_any3d.processing.voxels import PointTransformerV3Processor as PointTransformerV3Processor
    from hf_any3d.published import open_published as open_published
    from hf_any3d.tuners import (
        BitFitConfig as BitFitConfig,
        DAPTConfig as DAPTConfig,
        GuidedAdapterConfig as GuidedAdapterConfig,
        IDPTConfig as IDPTConfig,
        PointGSTConfig as PointGSTConfig,
        PPTConfig as PPTConfig,
        PromptTokensConfig as PromptTokensConfig,
        SideTuningConfig as SideTuningConfig,
        encoder_linear_pattern as encoder_linear_pattern,
        trainable_module_names as trainable_module_names,
    )

_PUBLIC = _names_for_type_checkers(__name__, __file__) | {
    name: f"modeling.{kind.package}" for kind in _MODEL_TYPES.values() for name in (kind.config, *kind.models())
}
"""Public name -> module below this package, which is imported when the name is first used."""
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Load public names when they are first used."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted([*globals(), *__all__])


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


# What a model alone does not need: without it the classes in `hf_any3d.modeling` work, and nothing is registered.
_ONLY_MODELS = not all(map(_is_installed, ("peft", "scipy")))
# Registering loads torch, transformers and PEFT, which takes seconds; the command line answers --help without them,
# and its commands register when they turn to models.
if "hf_any3d_command" not in sys.modules and not _ONLY_MODELS:
    with _without_remarks():
        importlib.import_module(f"{__name__}.integration.registration").register()

"""3D point clouds in the Hugging Face ecosystem: models, adapters, data, training and pipelines.

Importing this package registers its models with transformers and its adapters with PEFT.
"""

import importlib
import sys
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

from hf_any3d.version import __version__ as __version__

_models = _Path(__file__).parent / "modeling"
if not _models.is_dir():
    raise ImportError(
        f"{_models} is no link to a folder: this checkout was made without symbolic links; run `git config "
        "core.symlinks true` and check it out again (on Windows, in developer mode), or install a wheel"
    )

_NAMES = {
    "auto": (
        "AutoModelForPointCloudClassification AutoModelForPointCloudReconstruction AutoModelForPointCloudSegmentation "
        "AutoModelForPointCloudTextToText AutoModelForZeroShotPointCloudClassification "
        "AutoModelForZeroShotPointCloudSegmentation"
    ),
    "chat": "ChatSession MiniGPT3DProcessor",
    "data": "PointCloud load_point_dataset",
    "data.text_bank": "TextBank",
    "data.files": "example_file read_point_cloud",
    "modeling.act": (
        "ActAutoencoder ActAutoencoderConfig ActConfig ActForPartSegmentation ActForPointCloudClassification "
        "ActForPreTraining ActForSemanticSegmentation ActModel"
    ),
    "modeling.any2point": (
        "Any2PointConfig Any2PointForPartSegmentation Any2PointForPointCloudClassification "
        "Any2PointForSemanticSegmentation Any2PointForZeroShotPointCloudClassification Any2PointModel "
        "PointTokenizerConfig PointTokenizerForPointCloudClassification PointTokenizerModel"
    ),
    "modeling.encoders": "UnsupportedEncoder",
    "modeling.minigpt3d": "MiniGPT3DConfig MiniGPT3DForConditionalGeneration",
    "modeling.openshape": (
        "OpenShapeConfig OpenShapeForPointCloudClassification OpenShapeForPointCloudSegmentation "
        "OpenShapeForZeroShotPointCloudClassification OpenShapeModel"
    ),
    "modeling.patchalign3d": (
        "PatchAlign3DConfig PatchAlign3DForPointCloudClassification PatchAlign3DForPointCloudSegmentation "
        "PatchAlign3DForPreTraining PatchAlign3DForZeroShotPointCloudSegmentation PatchAlign3DModel"
    ),
    "modeling.pointnet": (
        "PointNet2Config PointNet2ForPointCloudClassification PointNet2Model "
        "PointNetConfig PointNetForPointCloudClassification PointNetModel"
    ),
    "modeling.point_transformer_v3": (
        "PointTransformerV3Config PointTransformerV3ForPointCloudClassification "
        "PointTransformerV3ForPointCloudSegmentation PointTransformerV3Model"
    ),
    "modeling.uni3d": (
        "Uni3DConfig Uni3DForPointCloudClassification Uni3DForPointCloudSegmentation "
        "Uni3DForZeroShotPointCloudClassification Uni3DModel"
    ),
    "opening": "open_published",
    "processing": "PointCloudProcessor",
    "tuners": (
        "BitFitConfig GuidedAdapterConfig PromptTokensConfig SideTuningConfig encoder_linear_pattern "
        "trainable_module_names"
    ),
    "voxel_processing": "PointTransformerV3Processor",
}
"""Module -> its public names."""
_PUBLIC = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:  # for editors and type checkers; at run time names are imported when they are first used
    from hf_any3d.auto import (
        AutoModelForPointCloudClassification as AutoModelForPointCloudClassification,
        AutoModelForPointCloudReconstruction as AutoModelForPointCloudReconstruction,
        AutoModelForPointCloudSegmentation as AutoModelForPointCloudSegmentation,
        AutoModelForPointCloudTextToText as AutoModelForPointCloudTextToText,
        AutoModelForZeroShotPointCloudClassification as AutoModelForZeroShotPointCloudClassification,
        AutoModelForZeroShotPointCloudSegmentation as AutoModelForZeroShotPointCloudSegmentation,
    )
    from hf_any3d.chat import ChatSession as ChatSession, MiniGPT3DProcessor as MiniGPT3DProcessor
    from hf_any3d.data import PointCloud as PointCloud, load_point_dataset as load_point_dataset
    from hf_any3d.data.files import example_file as example_file, read_point_cloud as read_point_cloud
    from hf_any3d.data.text_bank import TextBank as TextBank
    from hf_any3d.modeling.act import (
        ActAutoencoder as ActAutoencoder,
        ActAutoencoderConfig as ActAutoencoderConfig,
        ActConfig as ActConfig,
        ActForPartSegmentation as ActForPartSegmentation,
        ActForPointCloudClassification as ActForPointCloudClassification,
        ActForPreTraining as ActForPreTraining,
        ActForSemanticSegmentation as ActForSemanticSegmentation,
        ActModel as ActModel,
    )
    from hf_any3d.modeling.any2point import (
        Any2PointConfig as Any2PointConfig,
        Any2PointForPartSegmentation as Any2PointForPartSegmentation,
        Any2PointForPointCloudClassification as Any2PointForPointCloudClassification,
        Any2PointForSemanticSegmentation as Any2PointForSemanticSegmentation,
        Any2PointForZeroShotPointCloudClassification as Any2PointForZeroShotPointCloudClassification,
        Any2PointModel as Any2PointModel,
        PointTokenizerConfig as PointTokenizerConfig,
        PointTokenizerForPointCloudClassification as PointTokenizerForPointCloudClassification,
        PointTokenizerModel as PointTokenizerModel,
    )
    from hf_any3d.modeling.encoders import UnsupportedEncoder as UnsupportedEncoder
    from hf_any3d.modeling.minigpt3d import (
        MiniGPT3DConfig as MiniGPT3DConfig,
        MiniGPT3DForConditionalGeneration as MiniGPT3DForConditionalGeneration,
    )
    from hf_any3d.modeling.openshape import (
        OpenShapeConfig as OpenShapeConfig,
        OpenShapeForPointCloudClassification as OpenShapeForPointCloudClassification,
        OpenShapeForPointCloudSegmentation as OpenShapeForPointCloudSegmentation,
        OpenShapeForZeroShotPointCloudClassification as OpenShapeForZeroShotPointCloudClassification,
        OpenShapeModel as OpenShapeModel,
    )
    from hf_any3d.modeling.patchalign3d import (
        PatchAlign3DConfig as PatchAlign3DConfig,
        PatchAlign3DForPointCloudClassification as PatchAlign3DForPointCloudClassification,
        PatchAlign3DForPointCloudSegmentation as PatchAlign3DForPointCloudSegmentation,
        PatchAlign3DForPreTraining as PatchAlign3DForPreTraining,
        PatchAlign3DForZeroShotPointCloudSegmentation as PatchAlign3DForZeroShotPointCloudSegmentation,
        PatchAlign3DModel as PatchAlign3DModel,
    )
    from hf_any3d.modeling.point_transformer_v3 import (
        PointTransformerV3Config as PointTransformerV3Config,
        PointTransformerV3ForPointCloudClassification as PointTransformerV3ForPointCloudClassification,
        PointTransformerV3ForPointCloudSegmentation as PointTransformerV3ForPointCloudSegmentation,
        PointTransformerV3Model as PointTransformerV3Model,
    )
    from hf_any3d.modeling.pointnet import (
        PointNet2Config as PointNet2Config,
        PointNet2ForPointCloudClassification as PointNet2ForPointCloudClassification,
        PointNet2Model as PointNet2Model,
        PointNetConfig as PointNetConfig,
        PointNetForPointCloudClassification as PointNetForPointCloudClassification,
        PointNetModel as PointNetModel,
    )
    from hf_any3d.modeling.uni3d import (
        Uni3DConfig as Uni3DConfig,
        Uni3DForPointCloudClassification as Uni3DForPointCloudClassification,
        Uni3DForPointCloudSegmentation as Uni3DForPointCloudSegmentation,
        Uni3DForZeroShotPointCloudClassification as Uni3DForZeroShotPointCloudClassification,
        Uni3DModel as Uni3DModel,
    )
    from hf_any3d.opening import open_published as open_published
    from hf_any3d.processing import PointCloudProcessor as PointCloudProcessor
    from hf_any3d.tuners import (
        BitFitConfig as BitFitConfig,
        GuidedAdapterConfig as GuidedAdapterConfig,
        PromptTokensConfig as PromptTokensConfig,
        SideTuningConfig as SideTuningConfig,
        encoder_linear_pattern as encoder_linear_pattern,
        trainable_module_names as trainable_module_names,
    )
    from hf_any3d.voxel_processing import PointTransformerV3Processor as PointTransformerV3Processor


def __getattr__(name: str) -> Any:
    """Load public names when they are first used."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted([*globals(), *__all__])


# Registering loads torch, transformers and PEFT, which takes seconds; the command line answers --help without them,
# and its commands register when they turn to models.
if "hf_any3d_command" not in sys.modules:
    importlib.import_module(f"{__name__}.registration").register()

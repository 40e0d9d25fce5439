"""Public names for type checkers, written by `python -m docs.tools.stubs`."""

from hf_any3d.array_segmentation import Segmentation as Segmentation, segment as segment
from hf_any3d.chat import ChatSession as ChatSession
from hf_any3d.data import PointCloud as PointCloud, load_point_dataset as load_point_dataset
from hf_any3d.data.classes.las_classes import ASPRS_CLASSES as ASPRS_CLASSES
from hf_any3d.data.classes.text_bank import TextBank as TextBank
from hf_any3d.data.files import (
    example_file as example_file,
    read_point_cloud as read_point_cloud,
    write_labels as write_labels,
)
from hf_any3d.integration.auto import (
    AutoModelForPointCloudClassification as AutoModelForPointCloudClassification,
    AutoModelForPointCloudObjectDetection as AutoModelForPointCloudObjectDetection,
    AutoModelForPointCloudReconstruction as AutoModelForPointCloudReconstruction,
    AutoModelForPointCloudSegmentation as AutoModelForPointCloudSegmentation,
    AutoModelForPointCloudTextToText as AutoModelForPointCloudTextToText,
    AutoModelForZeroShotPointCloudClassification as AutoModelForZeroShotPointCloudClassification,
    AutoModelForZeroShotPointCloudSegmentation as AutoModelForZeroShotPointCloudSegmentation,
)
from hf_any3d.modeling.act import (
    ActAutoencoder as ActAutoencoder,
    ActAutoencoderConfig as ActAutoencoderConfig,
    ActConfig as ActConfig,
    ActForPartSegmentation as ActForPartSegmentation,
    ActForPointCloudClassification as ActForPointCloudClassification,
    ActForPreTraining as ActForPreTraining,
    ActForSemanticSegmentation as ActForSemanticSegmentation,
    ActModel as ActModel,
    PointBERTForPartSegmentation as PointBERTForPartSegmentation,
    PointBERTForPreTraining as PointBERTForPreTraining,
    PointMAEForPreTraining as PointMAEForPreTraining,
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
from hf_any3d.modeling.detr3d import (
    Detr3DConfig as Detr3DConfig,
    Detr3DForPointCloudObjectDetection as Detr3DForPointCloudObjectDetection,
    Detr3DModel as Detr3DModel,
)
from hf_any3d.modeling.dgcnn import (
    DgcnnConfig as DgcnnConfig,
    DgcnnForPointCloudClassification as DgcnnForPointCloudClassification,
    DgcnnForSemanticSegmentation as DgcnnForSemanticSegmentation,
    DgcnnModel as DgcnnModel,
)
from hf_any3d.modeling.encoders import UnsupportedEncoder as UnsupportedEncoder
from hf_any3d.modeling.minigpt3d import (
    MiniGPT3DConfig as MiniGPT3DConfig,
    MiniGPT3DForConditionalGeneration as MiniGPT3DForConditionalGeneration,
    MiniGPT3DModel as MiniGPT3DModel,
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
from hf_any3d.modeling.point_features import (
    PointFeaturesConfig as PointFeaturesConfig,
    PointFeaturesForPointCloudClassification as PointFeaturesForPointCloudClassification,
    PointFeaturesModel as PointFeaturesModel,
)
from hf_any3d.modeling.point_transformer_v3 import (
    PointTransformerV3Config as PointTransformerV3Config,
    PointTransformerV3ForPointCloudClassification as PointTransformerV3ForPointCloudClassification,
    PointTransformerV3ForPointCloudSegmentation as PointTransformerV3ForPointCloudSegmentation,
    PointTransformerV3ForZeroShotPointCloudSegmentation as PointTransformerV3ForZeroShotPointCloudSegmentation,
    PointTransformerV3Model as PointTransformerV3Model,
)
from hf_any3d.modeling.pointgpt import (
    PointGPTConfig as PointGPTConfig,
    PointGPTForPartSegmentation as PointGPTForPartSegmentation,
    PointGPTForPointCloudClassification as PointGPTForPointCloudClassification,
    PointGPTForPreTraining as PointGPTForPreTraining,
    PointGPTForSemanticSegmentation as PointGPTForSemanticSegmentation,
    PointGPTModel as PointGPTModel,
)
from hf_any3d.modeling.pointnet import (
    PointNet2Config as PointNet2Config,
    PointNet2ForPointCloudClassification as PointNet2ForPointCloudClassification,
    PointNet2Model as PointNet2Model,
    PointNetConfig as PointNetConfig,
    PointNetForPointCloudClassification as PointNetForPointCloudClassification,
    PointNetModel as PointNetModel,
)
from hf_any3d.modeling.recon import (
    ReconConfig as ReconConfig,
    ReconForPartSegmentation as ReconForPartSegmentation,
    ReconForPointCloudClassification as ReconForPointCloudClassification,
    ReconForPreTraining as ReconForPreTraining,
    ReconForSemanticSegmentation as ReconForSemanticSegmentation,
    ReconForZeroShotPointCloudClassification as ReconForZeroShotPointCloudClassification,
    ReconModel as ReconModel,
)
from hf_any3d.modeling.spatiallm import (
    SpatialLMConfig as SpatialLMConfig,
    SpatialLMForConditionalGeneration as SpatialLMForConditionalGeneration,
    SpatialLMModel as SpatialLMModel,
)
from hf_any3d.modeling.uni3d import (
    Uni3DConfig as Uni3DConfig,
    Uni3DForPointCloudClassification as Uni3DForPointCloudClassification,
    Uni3DForPointCloudSegmentation as Uni3DForPointCloudSegmentation,
    Uni3DForZeroShotPointCloudClassification as Uni3DForZeroShotPointCloudClassification,
    Uni3DModel as Uni3DModel,
)
from hf_any3d.processing.chat import MiniGPT3DProcessor as MiniGPT3DProcessor
from hf_any3d.processing.point_clouds import PointCloudProcessor as PointCloudProcessor
from hf_any3d.processing.rooms import SpatialLMProcessor as SpatialLMProcessor
from hf_any3d.processing.voxels import PointTransformerV3Processor as PointTransformerV3Processor
from hf_any3d.published import open_published as open_published
from hf_any3d.tuners import (
    APPTConfig as APPTConfig,
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
from hf_any3d.version import __version__ as __version__
from hf_any3d_survey.local_features import (
    LocalFeaturesConfig as LocalFeaturesConfig,
    LocalFeaturesForPointCloudSegmentation as LocalFeaturesForPointCloudSegmentation,
    LocalFeaturesModel as LocalFeaturesModel,
)
from hf_any3d_survey.processor import LocalFeaturesProcessor as LocalFeaturesProcessor

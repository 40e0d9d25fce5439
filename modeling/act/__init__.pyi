"""Public names for type checkers, written by `python -m docs.tools.stubs`."""

from hf_any3d.modeling.act.codebook import gumbel_temperature as gumbel_temperature, kl_weight as kl_weight
from hf_any3d.modeling.act.configuration_act import (
    ActAutoencoderConfig as ActAutoencoderConfig,
    ActConfig as ActConfig,
)
from hf_any3d.modeling.act.modeling_act import (
    ActForPartSegmentation as ActForPartSegmentation,
    ActForPointCloudClassification as ActForPointCloudClassification,
    ActForPreTraining as ActForPreTraining,
    ActForPreTrainingOutput as ActForPreTrainingOutput,
    ActForSemanticSegmentation as ActForSemanticSegmentation,
    ActModel as ActModel,
    ActOutput as ActOutput,
    ActPreTrainedModel as ActPreTrainedModel,
)
from hf_any3d.modeling.act.modeling_act_autoencoder import (
    ActAutoencoder as ActAutoencoder,
    ActAutoencoderOutput as ActAutoencoderOutput,
)
from hf_any3d.modeling.act.modeling_point_bert import (
    PointBERTForPartSegmentation as PointBERTForPartSegmentation,
    PointBERTForPreTraining as PointBERTForPreTraining,
    PointBERTForPreTrainingOutput as PointBERTForPreTrainingOutput,
)
from hf_any3d.modeling.act.modeling_point_mae import PointMAEForPreTraining as PointMAEForPreTraining

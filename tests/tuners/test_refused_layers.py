"""Models and layers that a method cannot adapt, with the reason; and what it adapts by default."""

import pytest
from peft import get_peft_model

from hf_any3d import PointTransformerV3ForPointCloudClassification, SideTuningConfig
from hf_any3d.modeling.act import ActForPointCloudClassification, ActForPreTraining
from hf_any3d.tuners.dapt import DAPTConfig
from hf_any3d.tuners.idpt import IDPTConfig
from hf_any3d.tuners.pointgst import PointGSTConfig
from hf_any3d.tuners.ppt import PPTConfig
from tests.errors import raises
from tests.tiny_act import tiny_act
from tests.tiny_encoders import tiny_model
from tests.tiny_ptv3 import tiny_ptv3


def act():
    return tiny_act(ActForPointCloudClassification)


def voxels():
    return tiny_ptv3(PointTransformerV3ForPointCloudClassification)


def blocks(*numbers) -> dict:
    return {"target_modules": rf".*blocks\.layers\.({'|'.join(map(str, numbers))})"}


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (tiny_model, PPTConfig(), "which the encoder of Any2PointForPointCloudClassification cannot do; expected"),
        (voxels, PPTConfig(), "which the encoder of PointTransformerV3ForPointCloudClassification cannot do"),
        (act, PPTConfig(**blocks(0, 1)), r"leave out .*layers\.2, to which the tokens go"),
        (voxels, DAPTConfig(), "DAPT cannot adapt"),
        (voxels, IDPTConfig(), "IDPT cannot adapt"),
        (voxels, PointGSTConfig(), "POINTGST cannot adapt"),
        (act, SideTuningConfig(**blocks(0, 1)), r"leaves out .*layers\.2, the encoder's last layer"),
        (
            voxels,
            SideTuningConfig(target_modules=r".*stages\.0\.blocks\.0|.*blocks\.(0|2)"),
            "leaves out .*, the first layer of a stage, where the side network is pooled; add it to",
        ),
    ],
)
def test_models_and_layers_that_cannot_be_adapted_are_refused(model, config, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(model(), config)


def test_a_student_of_pretraining_gives_its_encoder_some_patches_only():
    from tests.tiny_autoencoders import tiny_autoencoder

    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "decoder_num_hidden_layers": 1}
    student = ActForPreTraining.from_autoencoder_pretrained(tiny_autoencoder(None), **sizes)
    with raises(ValueError, naming="ActForPreTraining"):
        get_peft_model(student, PPTConfig())

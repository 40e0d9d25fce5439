"""Every setting of the point transformer and its heads has its effect; requested outputs; masked pretraining."""

import re

import pytest
import torch

from hf_any3d.modeling.act import (
    ActForSemanticSegmentation,
    ActModel,
)
from tests.tiny_act import clouds, tiny_act


def test_poolings_of_prompts_need_an_adapter():
    model = tiny_act(ActModel, pooling=("cls", "prompt_max"))
    message = "pooling=['cls', 'prompt_max']: there are no prompts, as no adapter leaves tokens behind the last block"
    with pytest.raises(ValueError, match=re.escape(message)):
        model(clouds())
    message = "segmentation_pooling='prompts': the adapters do not leave one prompt, before and after the block, at "
    with pytest.raises(ValueError, match=re.escape(message + "each of the blocks [0, 2]; expected IDPTConfig(")):
        tiny_act(ActForSemanticSegmentation, segmentation_pooling="prompts")(clouds())
    # Models without a class token pool what is left, or the maximum.
    for pooling, expected in ((("cls",), "amax"), (("cls", "mean"), "mean"), (("prompt_max", "max"), "amax")):
        output = tiny_act(ActModel, pooling=pooling, use_class_token=False)(clouds())
        torch.testing.assert_close(output.pooler_output, getattr(output.last_hidden_state, expected)(dim=1))

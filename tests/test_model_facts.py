"""What is told of a segmentation model from its configuration files alone."""

import pytest
from peft import get_peft_model

from hf_any3d import GuidedAdapterConfig
from hf_any3d.model_facts import model_facts
from hf_any3d.training.report import count_parameters
from tests.tiny_encoders import tiny_part_model, tiny_scene_model


@pytest.mark.parametrize("make", [tiny_scene_model, tiny_part_model])
def test_parameters_of_segmentation_heads_are_counted(make, tmp_path):
    model = get_peft_model(make(), GuidedAdapterConfig(r=4))
    model.save_pretrained(tmp_path)
    facts = model_facts(str(tmp_path))
    assert facts["class"] == type(model.get_base_model()).__name__
    assert (facts["trained parameters"], facts["total parameters"]) == count_parameters(model)
    assert len(facts["labels"]) == model.get_base_model().config.num_labels

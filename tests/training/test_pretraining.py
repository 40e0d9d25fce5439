"""The models of ACT's two stages, built from the arguments of their programs."""

import pytest

from hf_any3d.training.pretraining import StudentArguments, TeacherArguments, build_autoencoder
from tests.errors import raises


def test_without_a_teacher_the_autoencoder_is_plain():
    sizes = {"num_groups": 4, "group_size": 4, "num_codes": 8, "model_config": None}
    arguments = TeacherArguments("none", model_config={name: value for name, value in sizes.items() if value})
    assert build_autoencoder(arguments).config.encoder_config is None


@pytest.mark.parametrize("given", [{"random_teacher": True}, {"tower": "text"}, {"teacher_layers": 2}])
def test_without_a_teacher_its_settings_are_refused(given):
    with raises(ValueError, naming="--teacher"):
        TeacherArguments("none", **given)


def test_short_arguments_are_settings_of_the_student():
    given = StudentArguments("a", mask_ratio=0.5, mask_type="block", distillation_loss="l2", model_config={"x": 1})
    assert given.model_config == {"x": 1, "mask_ratio": 0.5, "mask_type": "block", "distillation_loss": "l2"}
    assert StudentArguments("a").model_config == {}

"""The models of ACT's two stages, built from the arguments of their programs."""

from hf_any3d import ActAutoencoder
from hf_any3d.training.pretraining import TeacherArguments, build_autoencoder


def test_every_argument_about_the_teacher_reaches_it(monkeypatch):
    asked = {}

    def open_teacher(name, **settings):
        asked.update(settings, name=name)

    monkeypatch.setattr(ActAutoencoder, "from_teacher_pretrained", open_teacher)
    given = {"tower": "text", "teacher_revision": "v1", "teacher_layers": 2, "attn_implementation": "eager"}
    build_autoencoder(TeacherArguments("me/teacher", model_config='{"num_codes": 8}', **given), num_groups=4)
    assert asked == {
        **{"name": "me/teacher", "tower": "text", "revision": "v1", "num_layers": 2, "attn_implementation": "eager"},
        **{"num_codes": 8, "num_groups": 4},
    }


def test_without_a_teacher_the_autoencoder_is_plain():
    sizes = {"num_groups": 4, "group_size": 4, "num_codes": 8, "model_config": None}
    arguments = TeacherArguments("none", model_config={name: value for name, value in sizes.items() if value})
    assert build_autoencoder(arguments).config.encoder_config is None

"""Small versions of released Any2Point checkpoints, converted by the command line and opened."""

import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModel, pipeline
from typer.testing import CliRunner

from hf_any3d import Any2PointForPointCloudClassification, AutoModelForPointCloudClassification
from hf_any3d.cli import app
from hf_any3d.conversions.any2point import VARIANTS
from tests.conversions.originals import SmallCase, small_variant, write
from tests.tiny_encoders import saved_encoder
from tests.turns import some

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*depend on the other clouds of a batch:UserWarning"),
    pytest.mark.usefixtures("libraries_as_they_were"),
]


class Setting:
    """A small checkpoint with its encoder on disk, and a small variant."""

    def __init__(self, variant, directory):
        self.case = SmallCase("any2point_" + variant.replace("-", "_"))
        self.variant, self.directory = variant, directory
        self.checkpoint, self.encoder = write(self.case, directory, self.case.base())

    def convert(self, *arguments, variant=None, checkpoint=None, output=None, encoder=None):
        arguments = [checkpoint or self.checkpoint, "--variant", variant or self.variant, *arguments]
        arguments += ["--output", output or self.directory / "out"]
        arguments += ["--encoder", encoder or self.encoder] if encoder is not False else []
        with pytest.MonkeyPatch.context() as patch:
            for name, program in VARIANTS.items():
                patch.setitem(VARIANTS, name, small_variant(program))
            result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    def refused(self, *arguments, **settings):
        """The error message of the command, which must leave no files."""
        before = sorted(path for path in self.directory.rglob("*"))
        code, out, err = self.convert(*arguments, **settings)
        assert code == 1 and out == "" and err.startswith("error: ") and len(err.splitlines()) == 1, err
        assert sorted(path for path in self.directory.rglob("*")) == before
        return err


# The others differ in the data set, and DINOv2, which takes seconds to understand, is opened by its public name below.
@pytest.fixture(
    params=some(VARIANTS, left_out=["clip-modelnet", "dinov2-scan", "dinov2-modelnet", "imagebind-modelnet"])
)
def setting(request, tmp_path):
    return Setting(request.param, tmp_path)


@pytest.fixture
def clip(tmp_path):
    return Setting("clip-scan", tmp_path)


@pytest.fixture
def imagebind(tmp_path):
    return Setting("imagebind-modelnet", tmp_path)


def logits(model, case):
    with torch.no_grad():
        return model(points=case.points).logits


@pytest.mark.slow
def test_converted_checkpoint_opens_by_every_entry_point_with_the_same_logits(setting):
    code, out, err = setting.convert()
    assert code == 0 and "trained parameters" in out, err
    saved, case = setting.directory / "out", setting.case
    assert sorted(path.name for path in saved.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "encoder",  # of a directory, which has no public name
        "preprocessor_config.json",
    ]
    expected = logits(case.build(), case)
    model = AutoModelForPointCloudClassification.from_pretrained(saved)
    assert torch.equal(logits(model, case), expected)
    config = AutoConfig.from_pretrained(saved)
    config.encoder_name_or_path = str(setting.encoder)
    base = Any2PointForPointCloudClassification.from_encoder_pretrained(config=config)
    assert torch.equal(logits(PeftModel.from_pretrained(base, saved).eval(), case), expected)
    classify = pipeline("point-cloud-classification", model=str(saved))
    names = {answer["label"] for answer in classify(case.points[0].numpy(), top_k=50)}
    assert names == set(case.variant.model["id2label"].values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", some(["clip-modelnet", "dinov2-scan", "imagebind-scan"], left_out=["clip-modelnet", "dinov2-scan"])
)
def test_stored_encoder_makes_a_directory_that_needs_no_other(variant, tmp_path, tmp_path_factory):
    setting = Setting(variant, tmp_path)
    assert setting.convert("--store-encoder")[0] == 0
    case, saved = setting.case, tmp_path_factory.mktemp("elsewhere") / "model"
    expected = logits(case.build(), case)
    shutil.move(setting.directory / "out", saved)
    shutil.rmtree(setting.encoder)
    model = AutoModelForPointCloudClassification.from_pretrained(saved)
    assert torch.equal(logits(model, case), expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    encoder = AutoModel.from_pretrained(saved / "encoder")
    assert encoder.config.model_type == case.variant.encoder["model_type"]
    # And so does the model saved again.
    model.save_pretrained(saved.parent / "again")
    shutil.rmtree(saved)
    again = AutoModelForPointCloudClassification.from_pretrained(saved.parent / "again")
    assert torch.equal(logits(again, case), expected)
    features = AutoModel.from_pretrained(saved.parent / "again")
    with torch.no_grad():
        assert torch.equal(features(case.points).pooler_output, model.any2point(case.points).pooler_output)


def test_directory_without_its_stored_encoder_is_refused(imagebind):
    assert imagebind.convert("--store-encoder")[0] == 0
    shutil.rmtree(imagebind.directory / "out" / "encoder")
    with pytest.raises(OSError, match="encoder"):
        AutoModelForPointCloudClassification.from_pretrained(imagebind.directory / "out")
    config = AutoConfig.from_pretrained(imagebind.directory / "out")
    with pytest.raises(ValueError, match="names no encoder: it is stored with the model"):
        Any2PointForPointCloudClassification.from_encoder_pretrained(config=config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", some(["clip-scan", "dinov2-scan", "imagebind-modelnet"], left_out=["clip-scan", "dinov2-scan"])
)
def test_card_has_flags_source_and_batch_dependence(variant, tmp_path):
    setting = Setting(variant, tmp_path)
    setting.convert()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"`position_injection={setting.case.variant.model['released']['position_injection']!r}`" in card
    assert "original.pth" in card and "sha256:" in card and "pipeline_tag: point-cloud-classification" in card
    assert ("depend on the other clouds" in card) == (variant != "dinov2-scan")
    assert str(tmp_path) not in card


@pytest.mark.slow
def test_bare_state_dicts_and_half_precision_are_accepted(clip):
    state = {name: t.half() if t.is_floating_point() else t for name, t in clip.case.original.items()}
    torch.save(state, clip.checkpoint, _use_new_zipfile_serialization=False)
    case = clip.case
    case.original = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    case.base().save_pretrained(clip.encoder)
    assert clip.convert()[0] == 0
    model = AutoModelForPointCloudClassification.from_pretrained(clip.directory / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(logits(model, case), logits(case.build(), case))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("clip-modelnet", "missing: classifier.hidden.0.bias, classifier.hidden.1.bias; of another shape: "),
        ("dinov2-scan", "belong to no known part: encoder.resblocks.0.attn.in_proj_bias, "),
        ("imagebind-scan", "belong to no known part: encoder.resblocks.0.attn.in_proj_bias, "),
    ],
)
def test_checkpoint_of_another_variant_does_not_fit(clip, variant, message):
    assert message in clip.refused(variant=variant)


@pytest.mark.slow
def test_encoder_with_other_weights_is_refused(setting):
    encoder = setting.case.base()
    name, layer = next((n, p) for n, p in encoder.named_parameters() if n.endswith("mlp.fc2.weight"))
    with torch.no_grad():
        layer[3, 5] += 1e-3
    encoder.save_pretrained(setting.encoder)
    err = setting.refused()
    assert "its frozen layers are not those of encoder" in err and "1 of " in err
    assert name.removeprefix("text_model.") in err


@pytest.mark.slow
def test_encoder_of_another_size_or_family_is_refused(clip):
    err = clip.refused(encoder=saved_encoder("clip"))
    assert "does not fit the checkpoint: it has " in err and ", expected " in err
    assert "tower='text' does not fit" in clip.refused(encoder=saved_encoder("vit"))
    assert "model_type='bert', expected 'clip_text_model'" in clip.refused(encoder=saved_encoder("bert"))


def test_imagebind_without_its_encoder_names_the_command_that_makes_it(imagebind):
    err = imagebind.refused(encoder=False)
    assert "table of positions" in err and "hf-any3d convert imagebind_huge.pth" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "name"), [("clip-scan", "openai/clip-vit-large-patch14"), ("dinov2-scan", "facebook/dinov2-base")]
)
def test_public_encoder_is_used_and_pinned_by_default(variant, name, tmp_path, hub):
    setting = Setting(variant, tmp_path)
    setting.case.base().push_to_hub(name)
    assert setting.convert(encoder=False)[0] == 0
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.encoder_name_or_path == name and len(config.encoder_revision) == 40
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"base_model: {name}" in card
    assert ("depend on the other clouds" in card) == (variant != "dinov2-scan")
    model = AutoModelForPointCloudClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(model, setting.case), logits(setting.case.build(), setting.case))

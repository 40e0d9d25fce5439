"""Small versions of released ACT checkpoints, converted by the command line and opened."""

import json
import os
import shutil
from functools import cache

import pytest
import torch
from transformers import AutoModel, pipeline
from typer.testing import CliRunner

from hf_any3d import AutoModelForPointCloudClassification, AutoModelForPointCloudSegmentation, PointCloudProcessor
from hf_any3d.cli import app
from hf_any3d.data.catalog import shapenetpart
from hf_any3d.modeling import act
from tests.conversions.act_originals import KINDS, PROMPTS, TEACHER_WIDTH, Original
from tests.turns import some

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

OPENERS = {
    "cls": AutoModelForPointCloudClassification,
    "partseg": AutoModelForPointCloudSegmentation,
    "semseg": AutoModelForPointCloudSegmentation,
    "dvae": act.ActAutoencoder,
    "pretrain": act.ActForPreTraining,
}
TAUGHT = ["dvae", "dvae_bert", "dvae_clip", "pretrain"]
UNREAD = ("embeddings.", "pooler.")


class Setting:
    """A small checkpoint on disk."""

    def __init__(self, case, directory, **options):
        self.original = Original(case, **options)
        self.kind, self.directory = self.original.kind, directory
        self.checkpoint, self.output = directory / "original.pth", directory / "out"
        torch.save(self.original.content(), self.checkpoint)

    def with_teacher(self, change=lambda encoder: None):
        """Save the public encoder next to the checkpoint; returns the arguments that name it."""
        encoder = self.original.public_teacher()
        change(encoder)
        encoder.save_pretrained(self.directory / "teacher")
        return "--teacher", self.directory / "teacher"

    def with_named_teacher(self):
        """The same for a name on the hub, whose weights stay there."""
        self.original.public_teacher().push_to_hub("me/teacher")
        return "--teacher", "me/teacher"

    def altered(self, change):
        """Write the checkpoint again with other tensors."""
        state = dict(self.original.state)
        change(state)
        torch.save(self.original.content(state), self.checkpoint)

    def convert(self, *arguments, kind=None, checkpoint=None):
        arguments = [checkpoint or self.checkpoint, "--kind", kind or self.kind, "--output", self.output, *arguments]
        result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    def opened(self, *arguments):
        """Convert the checkpoint and open the model."""
        code, out, err = self.convert(*arguments)
        assert code == 0, err
        assert "None" not in (self.output / "README.md").read_text()
        return OPENERS[self.kind].from_pretrained(self.output)

    def processor(self):
        """Convert the checkpoint and open the processor."""
        assert self.convert()[0] == 0
        return PointCloudProcessor.from_pretrained(self.output)

    def refused(self, *arguments, **settings):
        """The error message of the command, which must leave no files."""
        before = sorted(self.directory.rglob("*"))
        code, out, err = self.convert(*arguments, **settings)
        assert code == 1 and out == "" and err.startswith("error: ") and len(err.splitlines()) == 1, err
        assert sorted(self.directory.rglob("*")) == before
        return err


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Function from a case to its setting, converted without options, and the model, which tests do not change."""

    @cache
    def opened(case):
        setting = Setting(case, tmp_path_factory.mktemp(case))
        return setting, setting.opened()

    return opened


def config_of(model):
    """The configuration of the autoencoder in a model, or the model's own."""
    return getattr(model, "autoencoder", model).config


def differing(model, expected):
    """Names of a model's tensors that differ from the expected ones, without embeddings."""
    state = model.state_dict()
    names = {name for name in state if not name.rpartition("encoder.")[2].startswith(UNREAD)}
    assert names == expected.keys()
    return [name for name in names if not torch.equal(state[name], expected[name])]


@pytest.mark.slow
# The others differ in sizes alone; their settings are compared below.
@pytest.mark.parametrize("case", some(KINDS, left_out=["cls_modelnet", "pretrain"]))
def test_converted_checkpoint_opens_with_every_tensor_of_the_file(case, plain):
    setting, model = plain(case)
    assert not differing(model, setting.original.converted)
    assert not model.training
    assert sorted(path.name for path in setting.output.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    card = (setting.output / "README.md").read_text()
    stored = "; its layers are stored here, without its embeddings, which nothing reads."
    assert (stored in card) == (case not in ("dvae_plain", "cls", "cls_modelnet", "partseg", "semseg"))
    assert ("It has no teacher." in card) == (case == "dvae_plain")
    if stored in card:
        encoder = getattr(model, "autoencoder", model).encoder
        sizes = [tensor.numel() for name, tensor in encoder.named_parameters() if "embeddings." in name]
        # No larger than one patch of one pixel with one channel, or one word; CLIP's patches have no bias.
        rows = {"vit": 5, "bert": 5, "clip_vision_model": 4}[encoder.config.model_type]
        assert sum(sizes) == rows * encoder.config.hidden_size


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["linear", "side"])
def test_fine_tuning_protocols_are_recognized_by_their_tensors(variant, tmp_path):
    setting = Setting("cls", tmp_path, variant=variant)
    model = setting.opened()
    assert not differing(model, setting.original.converted)
    assert list(model.config.head_widths) == ([] if variant == "linear" else [24, 24])
    assert model.config.side_network == (variant == "side")


@pytest.mark.slow
@pytest.mark.parametrize("case", some(TAUGHT, left_out=["dvae", "dvae_bert", "dvae_clip"]))
def test_named_teacher_is_compared_and_left_out(case, plain, hub, tmp_path):
    complete, kept = plain(case)
    kept_size = (complete.output / "model.safetensors").stat().st_size
    setting = Setting(case, tmp_path)
    model = setting.opened(*setting.with_named_teacher())
    assert not differing(model, setting.original.converted)
    config = config_of(model)
    card = (setting.output / "README.md").read_text()
    assert f"Its frozen teacher is a `{config.encoder_config.model_type}` encoder." in card
    assert config.encoder_name_or_path == "me/teacher" and config.encoder_checksum.startswith("tensors-sha256:")
    frozen = sum(tensor.numel() for tensor in setting.original.frozen.values())
    left_out = kept_size - (setting.output / "model.safetensors").stat().st_size
    assert left_out > 4 * frozen > 0, "four bytes a number, and some for the names"
    assert config_of(kept).encoder_name_or_path is None
    assert config_of(kept).encoder_config.layer_norm_eps == config.encoder_config.layer_norm_eps


@pytest.mark.slow
@pytest.mark.parametrize("case", some(TAUGHT, left_out=["dvae_bert", "pretrain"]))
def test_stored_teacher_makes_a_directory_that_needs_no_other(case, tmp_path):
    setting = Setting(case, tmp_path)
    arguments = setting.with_teacher()
    assert setting.convert("--store-encoder", *arguments)[0] == 0
    shutil.rmtree(tmp_path / "teacher")
    model = OPENERS[setting.kind].from_pretrained(setting.output)
    assert not differing(model, setting.original.converted)
    public = setting.original.public_teacher()
    public = getattr(public, "vision_model", public)
    encoder = getattr(model, "autoencoder", model).encoder
    # The checkpoint lacks embeddings, so they are the teacher's.
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in public.state_dict().items())


@pytest.mark.slow
def test_public_teacher_is_pinned(tmp_path, hub):
    setting = Setting("dvae_clip", tmp_path)
    setting.original.public_teacher().push_to_hub("openai/clip-vit-base-patch16-small")
    model = setting.opened("--teacher", "openai/clip-vit-base-patch16-small")
    assert len(model.config.encoder_revision) == 40
    card = (setting.output / "README.md").read_text()
    assert "base_model: openai/clip-vit-base-patch16-small" in card and "checked against a checksum" in card


@pytest.mark.slow
def test_teacher_may_have_more_layers_than_the_checkpoint(tmp_path):
    setting = Setting("dvae_bert", tmp_path)
    encoder = setting.original.public_teacher()
    deeper = AutoModel.from_config(type(encoder.config)(**encoder.config.to_dict() | {"num_hidden_layers": 4}))
    deeper.load_state_dict(encoder.state_dict(), strict=False)
    deeper.save_pretrained(tmp_path / "teacher")
    model = setting.opened("--teacher", tmp_path / "teacher")
    assert model.config.encoder_config.num_hidden_layers == 2
    assert not differing(model, setting.original.converted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "flags"),
    [
        ("dvae", {"position_injection": "every_layer", "prompt_depth": "deep", "attention_axis": "tokens"}),
        ("dvae_shallow", {"prompt_depth": "shallow", "num_prompts": PROMPTS}),
        ("dvae_bert", {"position_injection": "input", "use_input_norm": False, "teacher_dropout": True}),
        ("dvae_clip", {"attention_axis": "tokens", "use_input_norm": True}),
        ("dvae_clip_deep", {"attention_axis": "batch"}),
        ("dvae_plain", {"encoder_config": None, "group_size": 32}),
    ],
)
def test_accidents_of_the_program_are_switched_on_and_documented(case, flags, plain):
    setting, model = plain(case)
    config = model.config
    flags = flags | {"sampling_min_squared_norm": 1e-3, "noise_in_eval": True}
    released = vars(config.released)
    assert {name: released[name] if name in released else getattr(config, name) for name in flags} == flags
    card = (setting.output / "README.md").read_text()
    usual = act.ActAutoencoderConfig()
    sound = usual.to_dict() | vars(usual.released)
    sizes = ("prompt_depth", "num_prompts", "encoder_config", "group_size")
    quirks = {n: v for n, v in flags.items() if n not in sizes and v != sound[n]}
    assert all(f"`{name}={value!r}`" in card for name, value in quirks.items())
    assert ("depend on the other clouds" in card) == (case == "dvae_clip_deep")
    if teacher := config.encoder_config:
        assert (teacher.hidden_size, teacher.num_attention_heads) == (TEACHER_WIDTH, 2)
        assert teacher.layer_norm_eps == {"bert": 1e-12, "clip_vision_model": 1e-5, "vit": 1e-6}[teacher.model_type]


@pytest.mark.slow
def test_pretraining_has_the_settings_of_the_program(plain):
    setting, model = plain("pretrain_cls")
    config = model.config
    expected = {"noisy_targets": True, "teacher_in_training_mode": True, "encode_visible_only": False}
    expected |= {"class_token_loss": True, "decoder_num_hidden_layers": 2, "sampling_min_squared_norm": 1e-3}
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.autoencoder_config.released.noise_in_eval
    card = (setting.output / "README.md").read_text()
    assert "`noisy_targets=True`" in card and "`ACT_encoder.lm_head`, which nothing reads, is left out" in card


@pytest.mark.slow
def test_student_of_pretraining_opens_as_a_base_model_for_fine_tuning(plain):
    setting, _ = plain("pretrain")
    model = act.ActForPointCloudClassification.from_pretrained(setting.output, num_labels=3)
    student = {name: t for name, t in setting.original.converted.items() if name.startswith("act.")}
    state = model.state_dict()
    assert student and all(torch.equal(tensor, state[name]) for name, tensor in student.items())


@pytest.mark.slow
def test_classifier_returns_class_names(tmp_path):
    setting = Setting("cls", tmp_path)
    assert setting.convert("--dataset", "scanobjectnn")[0] == 0
    classify = pipeline("point-cloud-classification", model=str(setting.output))
    answers = classify(setting.original.points[0].numpy(), top_k=20)
    assert {answer["label"] for answer in answers} >= {"bag", "sofa", "toilet"} and len(answers) == 15
    card = (setting.output / "README.md").read_text()
    assert "15 labels of ScanObjectNN" in card and "88.21 %" in card and "sha256:" in card
    assert "original.pth" in card and str(tmp_path) not in card


@pytest.mark.slow
def test_parts_and_rooms_have_the_names_of_their_datasets(tmp_path):
    config = Setting("partseg", tmp_path).opened("--dataset", "shapenetpart").config
    assert list(config.id2label.values()) == list(shapenetpart.PART_NAMES)
    assert config.category_names[:3] == ["Airplane", "Bag", "Cap"] and config.category_parts[2] == [6, 7]
    segment = pipeline("point-cloud-segmentation", model=str(tmp_path / "out"))
    answer = segment(torch.rand(2048, 3).numpy(), category="Mug")
    assert {segment["label"] for segment in answer["segments"]} <= {"Mug handle", "Mug cup"}
    shutil.rmtree(tmp_path / "out")
    config = Setting("semseg", tmp_path).opened("--dataset", "s3dis").config
    assert config.id2label[0] == "ceiling" and config.id2label[12] == "clutter"


@pytest.mark.slow
def test_labels_of_other_datasets_are_numbers(tmp_path):
    setting = Setting("cls_modelnet", tmp_path)
    assert setting.opened("--dataset", "modelnet40").config.id2label[0] == "airplane"
    shutil.rmtree(setting.output)
    assert "so the number of patches, which no tensor shows, is not known; give --num-groups" in setting.refused(
        "--dataset", "none"
    )
    assert setting.opened("--dataset", "none", "--num-groups", 64).config.id2label[0] == "LABEL_0"
    assert "dataset is 'modelnet41'; expected one of scanobjectnn, modelnet40, none" in refused_again(
        setting, "--dataset", "modelnet41"
    )
    assert "the given dataset has 15 classes; the model has 40" in setting.refused("--dataset", "scanobjectnn")


def refused_again(setting, *arguments):
    shutil.rmtree(setting.output)
    return setting.refused(*arguments)


@pytest.mark.slow
def test_settings_without_a_tensor_can_be_given(tmp_path):
    setting = Setting("cls_modelnet", tmp_path)
    arguments = ("--num-groups", 32, "--group-size", 16, "--num-attention-heads", 4, "--num-points", 512)
    config = setting.opened(*arguments).config
    assert (config.num_groups, config.group_size, config.num_attention_heads) == (32, 16, 4)
    assert json.loads((setting.output / "preprocessor_config.json").read_text())["num_points"] == 512
    shutil.rmtree(setting.output)
    assert "64 is not a multiple of 3; give num_attention_heads" in setting.refused("--num-attention-heads", 3)
    setting = Setting("dvae_plain", tmp_path)
    assert "decoder.coarse.4.bias is (24,), expected (12,)" in setting.refused("--group-size", 16)


@pytest.mark.parametrize(
    ("case", "kind"), [("cls", "dvae"), ("pretrain", "dvae"), ("semseg", "partseg"), ("dvae_plain", "act")]
)
def test_checkpoint_of_another_kind_is_refused(case, kind, tmp_path):
    assert "original.pth: " in Setting(case, tmp_path).refused(kind=kind)


@pytest.mark.slow
@pytest.mark.parametrize("case", some(TAUGHT, left_out=["dvae_clip", "pretrain"]))
def test_teacher_with_other_weights_is_refused(case, tmp_path):
    setting = Setting(case, tmp_path)

    def change(encoder):
        weights = [p for n, p in encoder.named_parameters() if ("layer" in n and "text" not in n and p.ndim == 2)]
        with torch.no_grad():
            weights[-1][3, 5] += 1e-3

    err = setting.refused(*setting.with_teacher(change))
    assert "its frozen layers are not those of encoder" in err and "1 of " in err and "as --teacher" in err


@pytest.mark.slow
def test_teacher_of_another_size_or_family_is_refused(tmp_path):
    bert = Setting("dvae_bert", tmp_path).with_teacher()
    clip = Setting("dvae_clip", tmp_path)
    assert "tower='vision' does not fit" in clip.refused(*bert)
    vit = Setting("dvae_shallow", tmp_path)
    assert "num_layers=3; expected 1 to 2, the number of " in vit.refused(*bert)
    vit.altered(lambda state: [state.pop(name) for name in list(state) if name.startswith("visual_embed.0.2.")])
    assert "missing: encoder.layer.0.attention.output.LayerNorm.bias, " in vit.refused(*bert)
    plain = Setting("dvae_plain", tmp_path)
    assert "teacher=" in plain.refused(*bert) and "the checkpoint holds none" in plain.refused(*bert)


def test_teacher_with_an_unknown_number_of_heads_must_be_named(tmp_path):
    setting = Setting("dvae_shallow", tmp_path)
    narrow = {
        name: tensor[..., :100] if "visual_embed" in name and "mlp.fc1.weight" in name else tensor
        for name, tensor in setting.original.state.items()
    }
    setting.altered(lambda state: state.update(narrow))
    assert "a width of 100 is not a multiple of 64" in setting.refused()


class Payload:
    def __reduce__(self):
        return os.system, ("touch ran-code",)


def test_pickled_objects_are_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setting = Setting("cls", tmp_path)
    torch.save(setting.original.content() | {"config": Payload()}, setting.checkpoint)
    err = setting.refused()
    assert "original.pth: holds more than tensors and plain values" in err and "system" in err
    assert not (tmp_path / "ran-code").exists()

"""Small versions of released Any2Point checkpoints, converted by the command line and opened."""

import json
import os
import pickle
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModel, pipeline
from typer.testing import CliRunner

from hf_any3d import Any2PointForPointCloudClassification, AutoModelForPointCloudClassification, PointCloudProcessor
from hf_any3d.cli import app
from hf_any3d.conversions.any2point import VARIANTS
from tests.conversions.originals import SmallCase, content, small_variant, write
from tests.tiny_encoders import saved_encoder

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


@pytest.fixture(params=list(VARIANTS))
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


def test_converted_checkpoint_opens_by_every_entry_point_with_the_same_logits(setting):
    code, out, err = setting.convert()
    assert code == 0 and "trained parameters" in out, err
    saved, case = setting.directory / "out", setting.case
    assert sorted(path.name for path in saved.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "preprocessor_config.json",
    ]
    expected = logits(case.build(), case)
    model = AutoModelForPointCloudClassification.from_pretrained(saved)
    assert torch.equal(logits(model, case), expected)
    config = AutoConfig.from_pretrained(saved)
    base = Any2PointForPointCloudClassification.from_encoder_pretrained(config=config)
    assert torch.equal(logits(PeftModel.from_pretrained(base, saved).eval(), case), expected)
    classify = pipeline("point-cloud-classification", model=str(saved))
    names = {answer["label"] for answer in classify(case.points[0].numpy(), top_k=50)}
    assert names == set(case.variant.model["id2label"].values())


def test_stored_encoder_makes_a_directory_that_needs_no_other(setting, tmp_path_factory):
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


def test_model_with_a_stored_encoder_can_be_pushed_and_loaded(imagebind, hub):
    assert imagebind.convert("--store-encoder")[0] == 0
    model = AutoModelForPointCloudClassification.from_pretrained(imagebind.directory / "out")
    model.push_to_hub("me/converted-imagebind")
    loaded = AutoModelForPointCloudClassification.from_pretrained("me/converted-imagebind")
    assert torch.equal(logits(loaded, imagebind.case), logits(model, imagebind.case))


def test_directory_without_its_stored_encoder_is_refused(imagebind):
    assert imagebind.convert("--store-encoder")[0] == 0
    shutil.rmtree(imagebind.directory / "out" / "encoder")
    with pytest.raises(ValueError, match="names no encoder, and the repository holds none in encoder/"):
        AutoModelForPointCloudClassification.from_pretrained(imagebind.directory / "out")
    config = AutoConfig.from_pretrained(imagebind.directory / "out")
    with pytest.raises(ValueError, match="names no encoder: it is stored with the model"):
        Any2PointForPointCloudClassification.from_encoder_pretrained(config=config)


def test_processor_prepares_clouds_as_the_program_did(clip, tmp_path):
    clip.convert()
    cloud = torch.rand(2048, 3).numpy() * 5
    points = PointCloudProcessor.from_pretrained(clip.directory / "out")([cloud])["points"]
    assert points.shape == (1, 1024, 3)
    torch.testing.assert_close(points.mean(dim=1), torch.zeros(1, 3), atol=1e-5, rtol=0)
    assert points.abs().max() > 2, "clouds of ScanObjectNN keep their size"


@pytest.mark.parametrize("variant", ["clip-scan", "dinov2-scan", "imagebind-modelnet"])
def test_card_has_flags_source_and_batch_dependence(variant, tmp_path):
    setting = Setting(variant, tmp_path)
    setting.convert()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"`position_injection={setting.case.variant.model['position_injection']!r}`" in card
    assert "original.pth" in card and "sha256:" in card and "pipeline_tag: point-cloud-classification" in card
    assert ("depend on the other clouds" in card) == (variant != "dinov2-scan")
    assert str(tmp_path) not in card


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


def altered(setting, change):
    kept = content(setting.case)
    state = kept.get("model", kept.get("base_model"))
    change(state)
    torch.save(kept, setting.checkpoint)


def test_left_over_tensors_are_listed(setting):
    altered(setting, lambda state: state.update(visual_proj=torch.ones(2), **{"module.extra.bias": torch.ones(2)}))
    err = setting.refused()
    assert "original.pth: the checkpoint holds tensors that belong to no known part: " in err
    assert "extra.bias, visual_proj" in err


def test_left_over_tensors_of_known_parts_are_listed(clip):
    altered(clip, lambda state: state.update({"encoder.resblocks.2.adapter.ln1.bias": torch.ones(16)}))
    assert "left over: any2point.encoder.encoder.layers.2.guided_adapter_down.bias" in clip.refused()
    altered(clip, lambda state: state.update({"encoder.resblocks.2.ln_1.bias": torch.ones(48)}))
    assert "left over: encoder.layers.2.layer_norm1.bias" in clip.refused()


def test_missing_tensors_are_listed(clip):
    def drop(state):
        for name in ("encoder.cls_pos", "prediction.head.4.0.bias", "encoder.resblocks.1.adapter.ln1.weight"):
            del state[name]

    altered(clip, drop)
    err = clip.refused()
    for name in ("class_token.position", "classifier.out.bias", "layers.1.guided_adapter_down.weight"):
        assert name in err.partition("missing: ")[2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoder.resblocks.0.attn.in_proj_bias", "missing: encoder.layers.0.self_attn.k_proj.bias, "),
        ("encoder.attn1.2.qkv.weight", "lacks tensors: any2point.encoder.encoder.layers.0.guided_adapter_attention"),
        ("encoder.attn1.5.qkv.weight", "guided_adapter_attention.qkv_weight is (5, 36, 48), expected (6, 36, 48)"),
    ],
)
def test_missing_parts_of_split_and_stacked_tensors_are_named(clip, name, message):
    altered(clip, lambda state: state.pop(name))
    assert message in clip.refused()


def test_tensors_of_another_shape_are_named(clip):
    altered(clip, lambda state: state.update({"prediction.head.4.0.bias": torch.ones(40)}))
    assert "of another shape: classifier.out.bias is (40,), expected (15,)" in clip.refused()


def test_two_tensors_for_one_part_are_refused(clip):
    altered(clip, lambda state: state.update(cls_pos=torch.ones(1, 1, 48)))
    assert "mean the same part: encoder.cls_pos and cls_pos" in clip.refused()


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (
            "clip-modelnet",
            "missing: classifier.hidden.0.bias, classifier.hidden.1.bias; of another shape: ",
        ),
        ("dinov2-scan", "belong to no known part: encoder.resblocks.0.attn.in_proj_bias, "),
        ("imagebind-scan", "belong to no known part: encoder.resblocks.0.attn.in_proj_bias, "),
    ],
)
def test_checkpoint_of_another_variant_does_not_fit(clip, variant, message):
    assert message in clip.refused(variant=variant)


def test_encoder_with_other_weights_is_refused(setting):
    encoder = setting.case.base()
    name, layer = next((n, p) for n, p in encoder.named_parameters() if n.endswith("mlp.fc2.weight"))
    with torch.no_grad():
        layer[3, 5] += 1e-3
    encoder.save_pretrained(setting.encoder)
    err = setting.refused()
    assert "its frozen layers are not those of encoder" in err and "1 of " in err
    assert name.removeprefix("text_model.") in err


def test_encoder_of_another_size_or_family_is_refused(clip):
    err = clip.refused(encoder=saved_encoder("clip"))
    assert "does not fit the checkpoint: it has " in err and "intermediate_size=96, expected 192" in err
    assert "tower='text' does not fit" in clip.refused(encoder=saved_encoder("vit"))
    assert "model_type='bert', expected 'clip_text_model'" in clip.refused(encoder=saved_encoder("bert"))


def test_imagebind_without_its_encoder_names_the_command_that_makes_it(imagebind):
    err = imagebind.refused(encoder=False)
    assert "table of positions" in err and "hf-any3d convert imagebind_huge.pth" in err


@pytest.mark.parametrize(
    ("variant", "name"), [("clip-scan", "openai/clip-vit-large-patch14"), ("dinov2-scan", "facebook/dinov2-base")]
)
def test_public_encoder_is_used_and_pinned_by_default(variant, name, tmp_path, hub):
    setting = Setting(variant, tmp_path)
    setting.case.base().push_to_hub(name)
    assert setting.convert(encoder=False)[0] == 0
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.encoder_name_or_path == name and len(config.encoder_revision) == 40
    assert f"base_model: {name}" in (tmp_path / "out" / "README.md").read_text()
    model = AutoModelForPointCloudClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(model, setting.case), logits(setting.case.build(), setting.case))


class Payload:
    def __reduce__(self):
        return os.system, ("touch ran-code",)


def test_pickled_objects_are_refused_and_never_run(clip, monkeypatch):
    monkeypatch.chdir(clip.directory)
    torch.save(content(clip.case) | {"config": Payload()}, clip.checkpoint)
    err = clip.refused()
    assert "original.pth: not a checkpoint of tensors and plain values" in err and "system" in err
    clip.checkpoint.write_bytes(pickle.dumps(Payload()))
    assert "original.pth: " in clip.refused()
    assert not (clip.directory / "ran-code").exists()


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_damaged_files_are_refused(clip, keep):
    clip.checkpoint.write_bytes(clip.checkpoint.read_bytes()[:keep])
    assert "original.pth: " in clip.refused()


@pytest.mark.parametrize("content", [{"optimizer": {"lr": 1.0}}, [torch.ones(2)], {"model": {"a": "text"}}, {}])
def test_files_without_a_state_dict_are_refused(clip, content):
    torch.save(content, clip.checkpoint)
    assert "no state dict; expected one under 'model' or 'base_model', found" in clip.refused()


def test_wrong_arguments_are_refused(clip):
    assert "missing.pth: no such file" in clip.refused(checkpoint=clip.directory / "missing.pth")
    assert "expected one of clip-scan, clip-modelnet, dinov2-scan" in clip.refused(variant="clip")
    (clip.directory / "full").mkdir()
    (clip.directory / "full" / "notes.txt").write_text("mine")
    assert "exists already and is not empty" in clip.refused(output=clip.directory / "full")


def test_empty_directory_may_be_filled(clip):
    (clip.directory / "out").mkdir()
    assert clip.convert()[0] == 0
    assert json.loads((clip.directory / "out" / "config.json").read_text())["model_type"] == "any2point"


def test_help_lists_the_variants():
    result = CliRunner().invoke(app, ["convert", "--help"], terminal_width=200)
    text = " ".join(result.stdout.split())
    assert result.exit_code == 0
    assert all(word in text for word in ("--variant", "clip-scan", "--encoder"))


def test_variants_have_the_published_accuracies():
    published = {"clip": (91.9, 94.3), "dinov2": (87.7, 93.2), "imagebind": (87.0, 92.7)}
    for encoder, (scan, modelnet) in published.items():
        assert VARIANTS[f"{encoder}-scan"].accuracy == scan
        assert VARIANTS[f"{encoder}-modelnet"].accuracy == modelnet


def test_variants_set_what_the_programs_set_whatever_our_defaults_are():
    settings = {"r", "bottleneck_scale", "aggregation_scale", "pooling", "attention_width", "attention_heads"}
    settings |= {"cell_size", "voxel_size", "count_empty_cells"}
    for name, variant in VARIANTS.items():
        assert variant.adapter.keys() == settings, name
        # Variants of one dataset differ only in how the encoder places tokens.
        shared = {
            "offset_normalization",
            "offset_eps",
            "pooling",
            "head_bias",
            "final_norm_eps",
            "tokenizer_neighbors",
        }
        shared |= {"id2label", "normalize_centers", "sampling_min_squared_norm", "sampling_tie_rule"}
        assert shared < variant.model.keys(), name
        places = {"line_mapping", "line_direction"} if "clip" in name else {"plane_mapping", "plane_distance"}
        assert places | {"position_injection"} <= variant.model.keys(), name

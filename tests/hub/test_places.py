"""Saved and pushed models stand alone: what has no public name is stored, and no file names a directory."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, Trainer, TrainingArguments

from hf_any3d import (
    ActForPointCloudClassification,
    Any2PointForPointCloudClassification,
    AutoModelForPointCloudClassification,
    GuidedAdapterConfig,
    PointNetConfig,
    PointNetForPointCloudClassification,
)
from tests.errors import raises
from tests.tiny_act import tiny_act
from tests.tiny_encoders import SMALL, clouds, random_encoder, tiny_config, with_large_logits
from tests.turns import some

pytestmark = pytest.mark.filterwarnings("ignore:this adapter leaves out", "ignore:the encoder", "ignore:the base")
NAMES = ("anna", "/tmp", "secret")


def around(encoder):
    torch.manual_seed(1)
    settings = {"num_labels": 3, **SMALL}
    return with_large_logits(Any2PointForPointCloudClassification.from_encoder_pretrained(encoder, **settings)).eval()


def lora(model, *targets, **settings):
    config = LoraConfig(target_modules=list(targets), init_lora_weights=False, **settings)
    return get_peft_model(model, config).eval()


def added(model, target):
    model.add_adapter(LoraConfig(target_modules=[target], modules_to_save=[], init_lora_weights=False))
    return model


def base(root, model):
    """The model, saved in a directory and opened from there."""
    model.save_pretrained(root / "base")
    return type(model).from_pretrained(root / "base")


def act(root):
    return base(root, tiny_act(ActForPointCloudClassification))


def pointnet(root):
    torch.manual_seed(2)
    config = PointNetConfig(hidden_sizes=[8], head_widths=[8], num_labels=3)
    return base(root, PointNetForPointCloudClassification(config).eval())


def encoder(root):
    random_encoder(tiny_config("bert")).save_pretrained(root / "base")
    return root / "base"


KINDS = {
    "model around an encoder": lambda root: around(encoder(root)),
    "guided adapter": lambda root: get_peft_model(
        around(encoder(root)), GuidedAdapterConfig(r=4, init_weights=False)
    ).eval(),
    "adapter without what was trained": lambda root: lora(around(encoder(root)), "query", modules_to_save=[]),
    "adapter without a head": lambda root: lora(act(root), "qkv"),
    "adapter with a head": lambda root: lora(act(root), "qkv", modules_to_save=["classifier"]),
    "adapter of add_adapter": lambda root: added(act(root), "qkv"),
    "adapter on a model without parts": lambda root: lora(pointnet(root), "out"),
    "adapter on a model that was never saved": lambda root: lora(tiny_act(ActForPointCloudClassification), "qkv"),
    "named adapter": lambda root: get_peft_model(
        around(encoder(root)), GuidedAdapterConfig(r=4, init_weights=False), adapter_name="mine"
    ).eval(),
}


@torch.no_grad()
def answer(model):
    return model.eval()(points=clouds(2)).logits


def assert_names_nobody(files):
    """Check the contents of files, by their names."""
    for name, content in files.items():
        assert not [word for word in NAMES if word.encode() in content], name


def contents(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def place_of(folder, kind):
    return folder / "mine" if kind == "named adapter" else folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_around_a_directory_opens_without_it_and_names_nothing_of_the_machine(kind, tmp_path):
    root = tmp_path / "home" / "anna" / "secret"
    model = KINDS[kind](root)
    expected = answer(model)
    model.save_pretrained(root / "saved")
    assert_names_nobody(contents(root / "saved"))
    shutil.move(root / "saved", tmp_path / "moved")
    shutil.rmtree(root)
    opened = AutoModelForPointCloudClassification.from_pretrained(place_of(tmp_path / "moved", kind))
    assert torch.equal(answer(opened), expected)
    # Saved once more, it stands alone again.
    opened.save_pretrained(tmp_path / "again")
    shutil.rmtree(tmp_path / "moved")
    again = AutoModelForPointCloudClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(answer(again), expected)


# A push is a directory that is uploaded: of each class of directories one.
PUSHED = ("model around an encoder", "guided adapter", "adapter with a head", "adapter of add_adapter")


@pytest.mark.parametrize(
    "kind", some([kind for kind in KINDS if kind != "named adapter"], left_out=KINDS.keys() - PUSHED)
)
def test_what_is_pushed_opens_for_others(kind, hub, tmp_path):
    root = tmp_path / "anna" / "secret"
    model = KINDS[kind](root)
    expected = answer(model)
    name = f"me/alone-{kind.replace(' ', '-')}"
    model.push_to_hub(name)
    assert_names_nobody({file: hub.content(name, file) for file in hub.files(name)})
    shutil.rmtree(root, ignore_errors=True)
    assert torch.equal(answer(AutoModelForPointCloudClassification.from_pretrained(name)), expected)


@pytest.fixture(scope="module")
def named(hub):
    """The name of an encoder on the hub."""
    AutoModel.from_config(tiny_config("bert")).push_to_hub("me/named-encoder")
    return "me/named-encoder"


@pytest.mark.parametrize("adapts", [False, True])
def test_a_public_encoder_is_a_reference_unless_it_is_asked_for(adapts, named, hub, tmp_path):
    model = around(named)
    if adapts:
        model = get_peft_model(model, GuidedAdapterConfig(r=4, init_weights=False)).eval()
    model.save_pretrained(tmp_path / "reference")
    model.save_pretrained(tmp_path / "whole", include_encoder=True)
    model.push_to_hub(f"me/whole-{adapts}", include_encoder=True)
    recorded = [
        json.loads(content)["parts"]["encoder"]
        for content in (
            (tmp_path / "reference" / "config.json").read_text(),
            (tmp_path / "whole" / "config.json").read_text(),
            hub.content(f"me/whole-{adapts}", "config.json"),
        )
    ]
    assert recorded[0]["name_or_path"] == named and recorded[0]["revision"] and "stored" not in recorded[0]
    assert all(part["stored"] and part["name_or_path"] == named for part in recorded[1:])
    sizes = [sum(map(len, contents(tmp_path / name).values())) for name in ("reference", "whole")]
    assert sizes[1] > sizes[0] + 4 * 10_000
    # What stays in memory is as it was.
    assert (model.get_base_model() if adapts else model).config.part("encoder").is_elsewhere
    (tmp_path / "encoder").mkdir()
    for place in (tmp_path / "reference", tmp_path / "whole", f"me/whole-{adapts}"):
        assert torch.equal(answer(AutoModelForPointCloudClassification.from_pretrained(place)), answer(model))


def test_storing_an_encoder_is_said_and_a_reference_is_not(named, tmp_path, recwarn):
    around(named).save_pretrained(tmp_path / "named")
    assert not [str(warning.message) for warning in recwarn if "stored" in str(warning.message)]
    with pytest.warns(UserWarning, match="the encoder came from the directory .*base, which nobody else can open"):
        around(encoder(tmp_path)).save_pretrained(tmp_path / "model")


def test_checkpoints_of_a_trainer_stand_alone_and_a_run_is_resumed_from_them(tmp_path):
    rows = [{"points": points, "labels": 0} for points in clouds(4)]
    for steps in (1, 2):
        model = KINDS["guided adapter"](tmp_path / "anna")
        arguments = TrainingArguments(
            tmp_path / "run", max_steps=steps, save_steps=1, report_to="none", use_cpu=True, seed=1
        )
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=steps > 1)
        shutil.rmtree(tmp_path / "anna")
    opened = AutoModelForPointCloudClassification.from_pretrained(tmp_path / "run" / "checkpoint-2")
    assert torch.equal(answer(opened), answer(model))


def test_a_base_that_is_given_takes_an_adapter_that_brings_its_own(tmp_path):
    model = KINDS["adapter without a head"](tmp_path)
    model.save_pretrained(tmp_path / "saved")
    given = ActForPointCloudClassification.from_pretrained(tmp_path / "base")
    assert torch.equal(answer(PeftModel.from_pretrained(given, tmp_path / "saved")), answer(model))


def test_an_encoder_that_is_gone_is_one_error_that_says_how_to_go_on(tmp_path, capfd):
    model = around(encoder(tmp_path))
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    settings = json.loads(file.read_text())
    # As files of one machine may still name it.
    settings["parts"]["encoder"] = {"name_or_path": str(tmp_path / "gone"), "revision": None}
    file.write_text(json.dumps(settings))
    (tmp_path / "model" / "model.safetensors").unlink()
    get_peft_model(model, GuidedAdapterConfig(r=4)).save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "encoder")
    file.write_text(json.dumps(settings))
    capfd.readouterr()
    with raises(ValueError, naming="encoder_name_or_path="):
        AutoModelForPointCloudClassification.from_pretrained(tmp_path / "model")
    assert "MISSING" not in "".join(capfd.readouterr())

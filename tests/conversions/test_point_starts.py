"""Files of the field's starting weights: recognized, refused in one line, and trained by every method."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForPreTraining

import hf_any3d
from hf_any3d import PointBERTForPartSegmentation
from hf_any3d.conversions.act import convert_act_state_dict
from hf_any3d.conversions.act.convert import Choices, build_act
from hf_any3d.conversions.point_starts import start_of
from hf_any3d.conversions.programs import convert_files, recognize
from hf_any3d.training.models import PARTS, find_model_class
from hf_any3d.tuners import (
    APPTConfig,
    BitFitConfig,
    DAPTConfig,
    GuidedAdapterConfig,
    IDPTConfig,
    PointGSTConfig,
    PPTConfig,
    PromptTokensConfig,
    SideTuningConfig,
)
from tests.conversions.start_case import FOLDER, StartCase
from tests.tiny_act import tiny_act
from tests.tiny_autoencoders import tiny_autoencoder
from tests.turns import ALL_PAIRS, by_turns, some

STARTS = ("start_mae_pretrain", "start_bert_pretrain", "start_recon_pretrain", "start_gpt_pretrain")
KINDS = (
    *STARTS,
    *("start_mae_partseg", "start_bert_cls", "start_bert_partseg", "start_recon_cls"),
    *("start_gpt_cls", "start_gpt_partseg"),
)
SYSTEMS = {"mae": "Point-MAE", "bert": "Point-BERT", "recon": "ReCon", "gpt": "PointGPT"}
CLASSES = {"recon": "Recon", "pointgpt": "PointGPT"}
MANIFESTS = {
    (name, kind): spec
    for name in ("point_mae", "point_bert")
    for kind, spec in json.loads((FOLDER / f"start_manifest_{name}.json").read_text()).items()
}


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> Callable[[str], Path]:
    """Function from a pretraining case to the directory of its converted file."""

    @cache
    def converted(name: str) -> Path:
        return StartCase(name).convert(tmp_path_factory.mktemp(name))

    return converted


@pytest.fixture(params=STARTS if ALL_PAIRS else STARTS[::2])
def start(request, starts) -> Path:
    """Directory of a converted pretraining file."""
    return starts(request.param)


@pytest.mark.parametrize("released", MANIFESTS, ids="-".join)
def test_every_tensor_of_a_released_file_is_accounted_for(released, tmp_path):
    """With exactly the names and shapes of the released sizes, without their numbers."""
    names = {name: torch.empty(shape, device="meta") for name, (shape, _) in MANIFESTS[released]["tensors"].items()}
    file = tmp_path / "file.pth"
    torch.save({"base_model": {name: torch.zeros(1) for name in names}}, file)
    kind = recognize(file).settings["kind"]
    state = {
        name: tensor.to(torch.int64) if MANIFESTS[released]["tensors"][name][1] == "int64" else tensor
        for name, tensor in names.items()
    }
    state = convert_act_state_dict(kind, state)
    if kind == "point_mae":
        state |= {f"act.class_token.{name}": torch.empty(384, device="meta") for name in ("token", "position")}
    with torch.device("meta"):
        # Raises an error that names the tensors, if some are missing, left over, or of another shape.
        model, _ = build_act(file, kind, state, None, Choices(num_groups=64))
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == MANIFESTS[released]["parameters"] + (768 if kind == "point_mae" else 0)


BLOCK = "blocks.blocks.0."
# Names of tensors -> system and kind, None for a file that no class is for.
OTHERS = {
    ("Dis_encoder.norm.weight", "MAE_encoder.img_token"): ("ReCon", None),
    ("MAE_encoder.img_token", "MAE_encoder.norm.weight", "img_proj.weight"): ("ReCon", "pretrain"),
    (f"{BLOCK}attn_contrast.q.weight", "cls_head_finetune.0.weight"): ("ReCon", "cls"),
    (f"{BLOCK}attn_contrast.q.weight", "label_conv.0.weight"): ("ReCon", "partseg"),
    (f"{BLOCK}attn_contrast.q.weight", "text_proj.weight"): ("ReCon", "zero_shot"),
    (f"{BLOCK}attn_contrast.q.weight", "norm.weight"): ("ReCon", "transformer"),
    ("GPT_Transformer.sos_pos", "GPT_Transformer.encoder.first_conv.0.weight"): ("PointGPT", "pretrain"),
    ("generator_blocks.sos", "blocks.cls_head_finetune.0.weight", "encoder.first_conv.0.weight"): ("PointGPT", "cls"),
    ("generator_blocks.sos", "label_conv.0.weight", "encoder.first_conv.0.weight"): ("PointGPT", "partseg"),
    ("generator_blocks.sos", "encoder.first_conv.0.weight"): ("PointGPT", None),
}


@pytest.mark.parametrize("names", OTHERS, ids="+".join)
def test_files_of_other_systems_are_told_apart(names):
    found = start_of(names)
    assert found is not None and (found.system, found.kind) == OTHERS[names]


def damages(case: StartCase):
    """Files that are half, too large or of another size: state dict and the tensor to be named, by what was done."""
    names = sorted(name for name in case.original if name.endswith(".weight") and case.original[name].ndim > 1)
    for name in (*names[:2], *names[-2:]):
        yield f"lacks {name}", {key: tensor for key, tensor in case.original.items() if key != name}
        yield f"cut {name}", case.original | {name: case.original[name][:-1]}
    prefix = re.match(r"((transformer_q|MAE_encoder|GPT_Transformer)\.|)", names[-1])[0]
    yield "more", case.original | {f"{prefix}mystery.weight": torch.ones(3)}
    yield "not finite", case.original | {names[0]: torch.full_like(case.original[names[0]], torch.nan)}


# Files of segmentation are large, and are refused where those of classification are.
@pytest.mark.parametrize("name", some(KINDS, left_out=[name for name in KINDS if name.endswith("partseg")]))
def test_a_damaged_file_is_refused_in_one_line(name, tmp_path):
    """It says what the file is taken for, and what is wrong."""
    case = StartCase(name)
    system = SYSTEMS[name.split("_")[1]]
    tried = 0
    for number, (_, state) in enumerate(damages(case)):
        # Each kind of damage is tried with every fifth file by turns.
        if not ALL_PAIRS and number % 5 != KINDS.index(name) % 5:
            continue
        file = case.write(tmp_path, state)
        with pytest.raises(ValueError) as error:
            convert_files([file], tmp_path / "out", {"num_groups": 16})
        text = str(error.value)
        assert text.startswith(str(file)) and text.count(str(file)) == 1 and "\n" not in text
        assert system in text, text
        assert not (tmp_path / "out").exists()
        tried += 1
    assert tried == (10 if ALL_PAIRS else 2)


METHODS = {
    "LORA": lambda: LoraConfig(r=2),
    "GUIDED_ADAPTER": GuidedAdapterConfig,
    "IDPT": lambda: IDPTConfig(neighbors=4),
    "DAPT": DAPTConfig,
    "PPT": PPTConfig,
    "POINTGST": PointGSTConfig,
    "APPT": APPTConfig,
    "SIDE_TUNING": SideTuningConfig,
    "BITFIT": BitFitConfig,
    "PROMPT_TOKENS": PromptTokensConfig,
}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "started"), by_turns(METHODS, STARTS))
def test_every_method_trains_from_a_start(starts, started, method):
    start = starts(started)
    torch.manual_seed(0)
    model = hf_any3d.AutoModelForPointCloudClassification.from_pretrained(start, num_labels=3)
    points = torch.rand(3, 64, 3) - 0.5
    frozen = model.base_model.blocks.layers[0].mlp.fc1.weight
    frozen = frozen.detach().clone()
    adapted = get_peft_model(model, METHODS[method]())
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.1)
    before = adapted.eval()(points=points).logits.detach()
    loss = adapted.train()(points=points, labels=torch.arange(3)).loss
    loss.backward()
    optimizer.step()
    assert not torch.equal(adapted.eval()(points=points).logits, before)
    kept = [p for name, p in adapted.named_parameters() if "layers.0." in name and name.endswith("fc1.weight")]
    kept += [p for name, p in adapted.named_parameters() if "layers.0." in name and "fc1.base_layer.weight" in name]
    assert any(torch.equal(weight, frozen) for weight in kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("started", "head"), by_turns(STARTS, ["ForPartSegmentation", "ForSemanticSegmentation", "Model"])
)
def test_a_start_opens_for_other_tasks(starts, started, head):
    """Its transformer is the same in all of them."""
    start = starts(started)
    pretrained = AutoModelForPreTraining.from_pretrained(start)
    model_class = CLASSES.get(pretrained.config.model_type, "Act") + head
    parts = {"category_parts": [[0, 1], [2]]} if head == "ForPartSegmentation" else {}
    sizes = {"segmentation_layers": [0, 1], "num_labels": 3}
    model = getattr(hf_any3d, model_class).from_pretrained(start, **sizes, **parts)
    ours, theirs = model.base_model.state_dict(), pretrained.base_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_student_of_act_starts_from_it(start, tmp_path):
    teacher = tiny_autoencoder(None, num_groups=16, group_size=8)
    model = hf_any3d.ActForPreTraining.from_autoencoder_pretrained(teacher, start)
    pretrained = AutoModelForPreTraining.from_pretrained(start).base_model.state_dict()
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in model.act.state_dict().items())
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path).act.state_dict()
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in again.items())
    output = model.train()(torch.rand(2, 64, 3))
    assert output.predictions.shape == output.targets.shape
    output.loss.backward()
    assert model.act.blocks.layers[0].mlp.fc1.weight.grad.abs().max() > 0


def test_a_saved_head_for_parts_is_trained_further(tmp_path):
    """Of two classes for the parts of objects, the one of the saved model."""
    model = tiny_act(PointBERTForPartSegmentation, segmentation_layers=(0, 1, 2), segmentation_levels=(24, 16))
    model.save_pretrained(tmp_path)
    assert find_model_class("act3d", PARTS, str(tmp_path)) is PointBERTForPartSegmentation
    assert find_model_class("act3d", PARTS) is hf_any3d.ActForPartSegmentation


@pytest.mark.slow
@pytest.mark.parametrize("started", STARTS if ALL_PAIRS else ["start_gpt_pretrain"])
def test_pretraining_goes_on_with_own_clouds(starts, started, tmp_path):
    start = starts(started)
    from examples import run_act_pretraining
    from tests.examples.conftest import words_of

    settings = {
        "model_name_or_path": str(start),
        "dataset_name": "shapes",
        "output_dir": str(tmp_path / "run"),
        "num_points": 64,
        "max_train_samples": 8,
        "max_eval_samples": 4,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        "use_cpu": True,
    }
    report = run_act_pretraining.main(words_of(settings))
    assert report.start == {"model": str(start)} and report.metrics["validation"]["loss"] > 0
    before, after = (AutoModelForPreTraining.from_pretrained(folder) for folder in (start, tmp_path / "run"))
    assert type(after) is type(before)
    ours, theirs = (model.base_model.blocks.layers[0].mlp.fc1.weight for model in (after, before))
    assert not torch.equal(ours, theirs)

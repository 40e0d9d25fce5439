"""Model cards of ACT's models: start, teacher, and loading examples."""

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from transformers import BertConfig

from hf_any3d import ActAutoencoderConfig, ActConfig
from hf_any3d.model_card import Subject, build_model_card
from hf_any3d.modeling.act import (
    ActAutoencoder,
    ActForPartSegmentation,
    ActForPointCloudClassification,
    ActForPreTraining,
    ActForSemanticSegmentation,
)
from tests.model_card.test_building import REPORT

TEACHER = {"name": "google/vit-base-patch16-224", "tower": "vision", "layers": 12, "checksum": "sha256:12"}
TUNED = replace(REPORT, encoder={}, start={"model": "me/student", "tuning": "full"})
ADAPTED = replace(
    TUNED,
    start={"model": "me/student", "tuning": "adapter"},
    adapter={"method": "guided_adapter", "settings": {"r": 8}},
)
LABELS = {0: "chair", 1: "lamp"}
PART_LABELS = {"category_parts": [[0], [1]], "category_names": ["furniture", "light"]}


def card(report, config, model, **settings) -> ModelCard:
    subject = Subject(model, config, report.adapter, report=report, num_points=512)
    return ModelCard(str(build_model_card(subject, "me/model", **settings)))


def code_of(made: ModelCard) -> str:
    blocks = re.findall(r"```python\n(.*?)```", made.text, re.DOTALL)
    for block in blocks:
        compile(block, "card", "exec")
    return "\n".join(blocks)


@pytest.mark.parametrize(
    ("model", "auto"),
    [
        (ActForPointCloudClassification, "AutoModelForPointCloudClassification"),
        (ActForSemanticSegmentation, "AutoModelForPointCloudSegmentation"),
        (ActForPartSegmentation, "AutoModelForPointCloudSegmentation"),
    ],
)
def test_tuned_student_names_its_start_and_keeps_all_weights(model, auto):
    made = card(TUNED, ActConfig(id2label=LABELS, **PART_LABELS), model)
    assert (made.data.base_model, made.data.base_model_relation) == ("me/student", "finetune")
    assert "A point transformer of 12 blocks" in made.text and "started from `me/student`." in made.text
    assert "all of them are stored in this repository" in made.text and "arxiv.org/abs/2212.08320" in made.text
    assert f'{auto}.from_pretrained("me/model")' in code_of(made)
    for text in ("Any2Point", "PeftModel", "frozen encoder"):
        assert text not in made.text, text


@pytest.mark.parametrize("model", [ActForPointCloudClassification, ActForSemanticSegmentation, ActForPartSegmentation])
def test_adapted_student_names_its_method_and_loads_as_an_adapter(model):
    made = card(ADAPTED, ActConfig(id2label=LABELS, **PART_LABELS), model)
    assert (made.data.base_model, made.data.base_model_relation) == ("me/student", "adapter")
    assert "guided_adapter" in made.data.tags
    assert "started from `me/student`, adapted by the PEFT method `guided_adapter`." in made.text
    assert f'base = {model.__name__}.build_for_adapter("me/model", config, {{}})' in code_of(made)
    assert "Any2Point" not in made.text and "| start, tuning | adapter |" in made.text


def test_student_trained_from_scratch_has_no_base_model():
    made = card(
        replace(TUNED, start={"model": None, "tuning": "full"}),
        ActConfig(id2label=LABELS),
        ActForPointCloudClassification,
    )
    assert "started from random weights." in made.text and made.data.base_model is None


def test_autoencoder_names_its_teacher_and_where_it_is_stored():
    config = ActAutoencoderConfig(encoder_config=BertConfig(), encoder_name_or_path=TEACHER["name"])
    report = replace(REPORT, encoder=TEACHER, metrics={"test": {"chamfer_l1": 0.02, "loss": 0.1}})
    made = card(report, config, ActAutoencoder)
    assert made.data.base_model == TEACHER["name"] and made.data.pipeline_tag == "point-cloud-reconstruction"
    assert f"a frozen `{TEACHER['name']}` reads the codes' vectors" in made.text
    assert f"The encoder is loaded from `{TEACHER['name']}`, and its weights are checked" in made.text
    assert "| test | 20.00 |" in made.text
    plain = card(replace(report, encoder={}), ActAutoencoderConfig(), ActAutoencoder)
    assert plain.data.base_model is None and "frozen" not in plain.text.partition("## How to use it")[0]


def test_pretrained_student_names_the_teacher_of_the_autoencoder():
    report = replace(REPORT, encoder=TEACHER, start={"autoencoder": "me/autoencoder"})
    made = card(replace(report, metrics={"test": {"probe_accuracy": 0.5}}), ActConfig(), ActForPreTraining)
    assert f"features from an autoencoder around `{TEACHER['name']}`" in made.text
    assert "| start, autoencoder | me/autoencoder |" in made.text and "50.0 %" in made.text
    assert 'ActModel.from_pretrained("me/model")' in code_of(made)


@pytest.mark.parametrize("given", ["apache-2.0", None])
def test_license_is_listed_only_if_given(given):
    made = card(TUNED, ActConfig(id2label=LABELS), ActForPointCloudClassification, license=given)
    assert made.data.license == given

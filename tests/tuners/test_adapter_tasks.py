"""Adapters of several tasks on one model: whatever switches them, the config says what the active one was trained with.

The property, at every door: a model says and answers what the directory of its active adapter does when it is opened
alone, and without an active adapter what it did before the first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model
from peft.functional import delete_adapter, set_adapter
from peft.utils.hotswap import hotswap_adapter

from hf_any3d import (
    ActForPartSegmentation,
    ActForPointCloudClassification,
    Any2PointForPointCloudClassification,
)
from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3ForPointCloudSegmentation
from hf_any3d.modeling.pretrained_parts.adapter_tasks import task_of
from tests.common.case import Case
from tests.common.models import case_of
from tests.common.tuners import answer_of, assert_same, config_of
from tests.errors import raises
from tests.tiny_detr3d import ON_ENCODER as DETECTOR

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def named(*names: str, **settings: Any) -> dict[str, Any]:
    """Return settings of a config with classes of these names."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
    return labels | {"num_labels": len(names)} | settings


OWN = named("x", "y", "z")
UNKNOWN = {"rows": 4, "distance": [0.5, 2.0], "threshold": 2.0, "share": 0.1}
CLASSES = {
    "five": named("chair", "lamp", "table", "sofa", "bed", unknown=UNKNOWN),
    "three": named("oak", "pine", "birch", problem_type="multi_label_classification"),
    "again": named("beech", "fir", "yew", problem_type="multi_label_classification"),
}
PLAIN = {name: named(*settings["id2label"].values()) for name, settings in CLASSES.items()}
PARTS = {
    "five": named(*"abcde", category_parts=[[0, 1], [2, 3, 4]], category_names=["cup", "mug"]),
    "three": named(*"fgh", category_parts=[[0], [1, 2]], category_names=["car", "van"]),
    "again": named(*"ijk", category_parts=[[0, 1], [1, 2]], category_names=["bus", "cab"]),
}
OWN_PARTS = named("x", "y", "z", category_parts=[[0, 1], [2]], category_names=["u", "v"])
# By turns: encoders of other modalities, point transformers, detectors on one; added layers, copies, prompts.
MODELS: dict[str, tuple[Case, str, dict[str, Any], dict[str, dict[str, Any]]]] = {
    "act": (case_of(ActForPointCloudClassification), "LORA", OWN, CLASSES),
    "any2point": (case_of(Any2PointForPointCloudClassification), "GUIDED_ADAPTER", OWN, CLASSES),
    "parts": (case_of(ActForPartSegmentation), "LN_TUNING", OWN_PARTS, PARTS),
    "voxels": (case_of(PointTransformerV3ForPointCloudSegmentation), "LORA", OWN, PLAIN),
    "detector": (DETECTOR, "LORA", OWN, PLAIN),
}


class Lab:
    """A model of three classes, and adapters of other tasks that were trained on its pretrained weights."""

    def __init__(self, kind: str, place: Path):
        self.case, self.method, own, tasks = MODELS[kind]
        self.place = place
        self._base = self.case.still(**own)
        self._base.save_pretrained(place / "base")
        self.own = task_of(self.base().config), answer_of(self.case, self._base)
        self.alone = {}
        for seed, (name, settings) in enumerate(tasks.items(), 1):
            self.trained(settings, seed).save_pretrained(place / name)
            opened = self.case.model_class.from_pretrained(place / name)
            self.alone[name] = task_of(opened.config), answer_of(self.case, opened)

    def base(self) -> Any:
        """Return the model of three classes."""
        return self.case.model_class.from_pretrained(self.place / "base")

    def trained(self, settings: dict[str, Any], seed: int) -> PeftModel:
        """Return a model with an adapter of another task."""
        model = self.case.still(**settings)
        model.base_model.load_state_dict(self._base.base_model.state_dict())
        adapted = get_peft_model(model, config_of(self.method, model))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            for name, tensor in adapted.named_buffers():
                if "unknown_score" in name:
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
        return adapted.eval()

    def folder(self, name: str) -> str:
        """Return the directory of an adapter."""
        return str(self.place / name)

    def says(self, model: Any, name: str | None) -> None:
        """Check that a model says and answers what an adapter does alone, None for none."""
        task, answer = self.own if name is None else self.alone[name]
        found = task_of(model.config)
        assert found == task, (name, found["id2label"])
        assert_same(answer_of(self.case, model), answer)


@pytest.fixture(scope="module", params=MODELS)
def lab(request, tmp_path_factory) -> Lab:
    return Lab(request.param, tmp_path_factory.mktemp(request.param))


def both(lab: Lab) -> PeftModel:
    model = PeftModel.from_pretrained(lab.base(), lab.folder("five"), adapter_name="five")
    model.load_adapter(lab.folder("three"), adapter_name="three")
    return model


def test_switching_by_peft(lab):
    model = both(lab)
    lab.says(model, "five")
    for switch in (
        model.set_adapter,
        model.base_model.set_adapter,
        lambda name: set_adapter(model.get_base_model(), name),
    ):
        for name in ("three", "five"):
            switch(name)
            lab.says(model, name)
    with model.disable_adapter():
        lab.says(model, None)
        model.set_adapter("three")
    lab.says(model, "three")
    model.delete_adapter("three")
    lab.says(model, "five")
    model.load_adapter(lab.folder("again"), adapter_name="five")
    model.delete_adapter("five")
    lab.says(model, None)


def test_switching_by_transformers(lab):
    model = lab.base()
    for name in ("five", "three"):
        model.load_adapter(lab.folder(name), adapter_name=name)
    for name in ("five", "three", "five"):
        model.set_adapter(name)
        lab.says(model, name)
    model.disable_adapters()
    lab.says(model, None)
    model.enable_adapters()
    lab.says(model, "five")
    model.delete_adapter("five")
    lab.says(model, "three")
    model.delete_adapter("three")
    lab.says(model, None)


def test_each_is_saved_with_its_own(lab, tmp_path):
    model = both(lab)
    model.load_adapter(lab.folder("again"), adapter_name="default")
    model.save_pretrained(tmp_path / "peft")
    lab.says(model, "five")
    for name, folder in (("five", "five"), ("three", "three"), ("again", "")):
        lab.says(lab.case.model_class.from_pretrained(tmp_path / "peft" / folder), name)
        card = (tmp_path / "peft" / folder / "README.md").read_text()
        assert all(label in card for label in lab.alone[name][0]["id2label"].values()), card
    # The model of the transformers' methods saves the active one.
    plain = lab.base()
    for name in ("five", "three"):
        plain.load_adapter(lab.folder(name), adapter_name=name)
    plain.set_adapter("five")
    plain.save_pretrained(tmp_path / "plain")
    lab.says(AutoPeftModel.from_pretrained(tmp_path / "plain"), "five")


def test_merging_and_unloading_keep_the_task_of_the_head_that_stays(lab, tmp_path):
    if lab.method in ("LORA", "LN_TUNING"):
        merged = both(lab).merge_and_unload(adapter_names=["three"])
        lab.says(merged, "three")
        merged.save_pretrained(tmp_path)
        lab.says(lab.case.model_class.from_pretrained(tmp_path), "three")
    model = both(lab)
    model.set_adapter("three")
    unloaded = model.unload()
    assert task_of(unloaded.config) == lab.alone["three"][0]
    assert not [name for name, _ in unloaded.named_modules() if "adapter" in name or "modules_to_save" in name]


def test_hotswap(lab):
    model = PeftModel.from_pretrained(lab.base(), lab.folder("three"))
    if lab.method != "LORA":
        model.load_adapter(lab.folder("again"), adapter_name="default")
    else:
        hotswap_adapter(model, lab.folder("again"), "default", torch_device="cpu")
    lab.says(model, "again")


def test_an_adapter_is_merged_unloaded_and_disabled_at_the_tuner(lab):
    model = both(lab)
    tuner = model.base_model
    tuner.disable_adapter_layers()
    lab.says(model, None)
    tuner.enable_adapter_layers()
    lab.says(model, "five")
    assert task_of(tuner.unload().config)["id2label"]

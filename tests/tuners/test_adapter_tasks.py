"""Adapters of several tasks on one model: whatever switches them, the config says the task of the active one.

The property, at every door: a model says and answers what the directory of its active adapter does when it is opened
alone, and without an active adapter what it did before the first.
"""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model
from peft.functional import set_adapter
from peft.utils.hotswap import hotswap_adapter
from transformers import pipeline

from hf_any3d import (
    ActForPartSegmentation,
    ActForPointCloudClassification,
    Any2PointForPointCloudClassification,
    PointCloudProcessor,
)
from hf_any3d.modeling.hooks import ModelWarning
from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3ForPointCloudSegmentation
from hf_any3d.modeling.pretrained_parts.task_settings import task_of
from tests.common.case import Case, varied_clouds
from tests.common.models import case_of
from tests.common.tuners import answer_of, assert_same, config_of
from tests.errors import raises
from tests.tiny_detr3d import ON_ENCODER as DETECTOR
from tests.turns import ALL_PAIRS

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
        self.tasks = tasks
        self._alone: dict[str, tuple[dict[str, Any], torch.Tensor]] = {}

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
        """Return the directory of an adapter, which is made when it is first asked for."""
        if name in self.tasks and not (self.place / name).exists():
            self.trained(self.tasks[name], seed=len(name)).save_pretrained(self.place / name)
        return str(self.place / name)

    def alone(self, name: str) -> tuple[dict[str, Any], torch.Tensor]:
        """Return the task and the answer of an adapter that is opened by its directory."""
        if name not in self._alone:
            opened = self.case.model_class.from_pretrained(self.folder(name))
            self._alone[name] = task_of(opened.config), answer_of(self.case, opened)
        return self._alone[name]

    def assert_says(self, model: Any, name: str | None) -> None:
        """Check that a model says and answers what an adapter does alone, None for none."""
        task, answer = self.own if name is None else self.alone(name)
        found = task_of(model.config)
        assert found == task, (name, found["id2label"])
        assert_same(answer_of(self.case, model), answer)


@pytest.fixture(scope="module")
def lab(request, tmp_path_factory) -> Lab:
    return Lab(request.param, tmp_path_factory.mktemp(request.param))


def on(*models: str) -> pytest.MarkDecorator:
    """Run a test on these models, or on all."""
    return pytest.mark.parametrize("lab", MODELS if ALL_PAIRS else models, indirect=True)


def both(lab: Lab) -> PeftModel:
    model = PeftModel.from_pretrained(lab.base(), lab.folder("five"), adapter_name="five")
    model.load_adapter(lab.folder("three"), adapter_name="three")
    return model


@on("act", "parts")
def test_switching_by_peft(lab):
    model = both(lab)
    lab.assert_says(model, "five")
    for switch in (
        model.set_adapter,
        model.base_model.set_adapter,
        lambda name: set_adapter(model.get_base_model(), name),
    ):
        for name in ("three", "five"):
            switch(name)
            lab.assert_says(model, name)
    with model.disable_adapter():
        lab.assert_says(model, None)
        model.set_adapter("three")
    lab.assert_says(model, "three")
    model.delete_adapter("three")
    lab.assert_says(model, "five")
    model.load_adapter(lab.folder("again"), adapter_name="five")
    model.delete_adapter("five")
    lab.assert_says(model, None)


@on("act", "any2point")
def test_switching_by_transformers(lab, tmp_path):
    model = lab.base()
    for name in ("five", "three"):
        model.load_adapter(lab.folder(name), adapter_name=name, is_trainable=True)
        assert not any(weight.requires_grad for key, weight in model.named_parameters() if "original_module" in key)
    for name in ("five", "three", "five"):
        model.set_adapter(name)
        lab.assert_says(model, name)
    model.disable_adapters()
    lab.assert_says(model, None)
    model.enable_adapters()
    lab.assert_says(model, "five")
    model.delete_adapter("five")
    lab.assert_says(model, "three")
    model.delete_adapter("three")
    lab.assert_says(model, None)
    # PEFT leaves its layers.
    model.save_pretrained(tmp_path)
    lab.assert_says(lab.case.model_class.from_pretrained(tmp_path), None)


@on("any2point", "voxels")
def test_each_is_saved_with_its_own(lab, tmp_path):
    model = both(lab)
    model.load_adapter(lab.folder("again"), adapter_name="default")
    model.save_pretrained(tmp_path / "peft")
    lab.assert_says(model, "five")
    for name, folder in (("five", "five"), ("three", "three"), ("again", "")):
        lab.assert_says(lab.case.model_class.from_pretrained(tmp_path / "peft" / folder), name)
        card = (tmp_path / "peft" / folder / "README.md").read_text()
        assert all(label in card for label in lab.alone(name)[0]["id2label"].values()), card
    # The model of the transformers' methods saves the active one.
    plain = lab.base()
    for name in ("five", "three"):
        plain.load_adapter(lab.folder(name), adapter_name=name)
    plain.set_adapter("five")
    plain.save_pretrained(tmp_path / "plain")
    lab.assert_says(AutoPeftModel.from_pretrained(tmp_path / "plain"), "five")


@on("act", "parts")
def test_merging_and_unloading_keep_the_task_of_the_head_that_stays(lab, tmp_path):
    if lab.method in ("LORA", "LN_TUNING"):
        merged = both(lab).merge_and_unload(adapter_names=["three"])
        lab.assert_says(merged, "three")
        merged.save_pretrained(tmp_path)
        lab.assert_says(lab.case.model_class.from_pretrained(tmp_path), "three")
    model = both(lab)
    model.set_adapter("three")
    unloaded = model.unload()
    assert task_of(unloaded.config) == lab.alone("three")[0]
    assert not [name for name, _ in unloaded.named_modules() if "adapter" in name or "modules_to_save" in name]


@on("act", "voxels")
def test_an_adapter_is_replaced_in_its_place(lab):
    # Of LoRA alone, the first one without an unknown score, which the second one lacks.
    first, then = ("three", "again") if "unknown" in lab.alone("five")[0] else ("five", "three")
    model = PeftModel.from_pretrained(lab.base(), lab.folder(first))
    if lab.method == "LORA":
        hotswap_adapter(model, lab.folder(then), "default", torch_device="cpu")
        lab.assert_says(model, then)
    model.load_adapter(lab.folder("five"), adapter_name="default")
    lab.assert_says(model, "five")
    with model.disable_adapter():
        lab.assert_says(model, None)


def test_pipelines_and_losses_follow_the_adapter(tmp_path):
    lab = Lab("act", tmp_path)
    cloud = varied_clouds(1)[0].numpy()
    processor = PointCloudProcessor(num_points=48)
    task = "point-cloud-classification"
    alone = {}
    for name in ("five", "three"):
        processor.save_pretrained(lab.folder(name))
        alone[name] = pipeline(task, model=lab.folder(name))(cloud, top_k=None)
    plain = lab.base()
    for name in alone:
        plain.load_adapter(lab.folder(name), adapter_name=name)
    for model in (both(lab), plain):
        pipe = pipeline(task, model=model, feature_extractor=processor)
        for name in ("three", "five", "three"):
            model.set_adapter(name)
            found = pipe(cloud, top_k=None)
            assert [row["label"] for row in found] == [row["label"] for row in alone[name]]
            for row, expected in zip(found, alone[name], strict=True):
                assert row["score"] == pytest.approx(expected["score"], abs=1e-4)
                assert row.get("unknown") == pytest.approx(expected.get("unknown"), abs=1e-4)
        loss = model(points=varied_clouds(2), labels=torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])).loss
        assert loss.isfinite()
        switched = model.base_model if isinstance(model, PeftModel) else model
        with raises(ValueError, naming="'three' for 3 classes (oak"):
            switched.set_adapter(["five", "three"])
        assert task_of(model.config) == lab.alone("three")[0]


@on("any2point")
def test_copies_switch_by_themselves(lab):
    model = both(lab)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.set_adapter("three")
        lab.assert_says(copied, "three")
        assert task_of(model.config) == lab.alone("five")[0]


@on("parts")
def test_what_is_changed_in_the_config_belongs_to_the_active_adapter(lab):
    model = get_peft_model(lab.base(), config_of(lab.method, lab.base()))
    model.config.id2label = {0: "p", 1: "q", 2: "r"}
    model.add_adapter("second", config_of(lab.method, lab.base()))
    assert model.config.id2label[0] == "p"
    model.set_adapter("second")
    assert model.config.id2label == lab.own[0]["id2label"]
    model.set_adapter("default")
    assert model.config.id2label[0] == "p"
    model.delete_adapter("default")
    assert model.config.id2label == lab.own[0]["id2label"]


@pytest.fixture(scope="module")
def without_head(tmp_path_factory) -> Lab:
    """Return adapters of two tasks that have trained no head."""
    lab = Lab("act", tmp_path_factory.mktemp("act"))
    for name, settings in (("headless", PLAIN["three"]), ("of five", PLAIN["five"])):
        lab.case.still(**settings).save_pretrained(lab.place / "whole")
        model = lab.case.model_class.from_pretrained(lab.place / "whole")
        model.base_model.load_state_dict(lab._base.base_model.state_dict())
        get_peft_model(model, config_of("LORA", model, modules_to_save=[])).save_pretrained(lab.place / name)
    return lab


def test_adapters_of_other_tasks_are_refused_in_one_line(without_head):
    lab = without_head
    for name, changes in (("lost", {}), ("elsewhere", {"architectures": ["ActForPartSegmentation"]})):
        shutil.copytree(lab.folder("five"), lab.folder(name))
        stored = json.loads(Path(lab.folder(name), "config.json").read_text())
        del stored["id2label"]
        Path(lab.folder(name), "config.json").write_text(json.dumps(stored | changes))
    for name, naming in (
        ("of five", "no head of its own and was trained for 5 classes (chair, lamp"),
        ("lost", "for 2 classes (LABEL_0, LABEL_1)"),
        ("elsewhere", "adapter of a ActForPartSegmentation; the model is a ActForPointCloudClassification"),
    ):
        for door in (
            lambda folder: PeftModel.from_pretrained(lab.base(), folder),
            lambda folder: lab.base().load_adapter(folder),
            lambda folder: both(lab).load_adapter(folder, "another"),
        ):
            with raises(ValueError, naming=naming) as refused:
                door(lab.folder(name))
            assert "\n" not in str(refused.value) and lab.folder(name) in str(refused.value)


def test_unloading_leaves_the_own_task_with_the_own_head(without_head):
    lab = without_head
    for unload in (lambda model: model.unload(), lambda model: model.base_model.unload()):
        lab.assert_says(unload(PeftModel.from_pretrained(lab.base(), lab.folder("headless"))), None)


def test_sums_are_of_one_task(without_head):
    lab = without_head
    model = PeftModel.from_pretrained(lab.base(), lab.folder("headless"), adapter_name="one")
    model.load_adapter(lab.folder("headless"), adapter_name="same")
    model.add_adapter("other", config_of("LORA", lab.base(), modules_to_save=[]))
    for call in (
        lambda names: model.add_weighted_adapter(names, [1.0, 1.0], "sum", combination_type="linear"),
        model.base_model.set_adapter,
        model.merge_adapter,
        lambda names: model.merge_and_unload(adapter_names=names),
    ):
        with raises(ValueError, naming="'other' for 3 classes (x, y, z)"):
            call(["one", "other"])
    assert model.config.id2label[0] == "oak"
    model.add_weighted_adapter(["one", "same"], [1.0, 1.0], "sum", combination_type="linear")
    model.set_adapter("other")
    model.set_adapter("sum")
    assert model.config.id2label[0] == "oak"
    model.base_model.set_adapter(["one", "same"])
    assert model.config.id2label[0] == "oak"
    assert model.merge_and_unload(adapter_names=["one", "same"]).config.id2label[0] == "oak"


@on("any2point")
def test_an_adapter_without_names_is_said(lab, tmp_path):
    shutil.copytree(lab.folder("again"), tmp_path / "lost")
    (tmp_path / "lost" / "config.json").unlink()
    # The adapter's own config has a record.
    lab.assert_says(PeftModel.from_pretrained(lab.base(), str(tmp_path / "lost")), "again")
    file = tmp_path / "lost" / "adapter_config.json"
    settings = json.loads(file.read_text())
    del settings["auto_mapping"]["task"]
    file.write_text(json.dumps(settings))
    for load in (
        lambda: PeftModel.from_pretrained(lab.base(), str(tmp_path / "lost")),
        lambda: lab.base().load_adapter(str(tmp_path / "lost")),
    ):
        with pytest.warns(ModelWarning, match="nothing says its classes, so those of the model stay, 3 classes"):
            load()


@on("act")
def test_tuners_disable_and_unload_by_themselves(lab):
    model = both(lab)
    tuner = model.base_model
    tuner.disable_adapter_layers()
    lab.assert_says(model, None)
    tuner.enable_adapter_layers()
    lab.assert_says(model, "five")
    tuner.set_adapter("three")
    base = tuner.unload()
    assert task_of(base.config) == lab.alone("three")[0]
    # Another adapter finds nothing of those before.
    assert get_peft_model(base, config_of(lab.method, base)).config.id2label[0] == "oak"

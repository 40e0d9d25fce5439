"""The errors that docstrings of public functions promise: each is provoked, and names what is wrong."""

import importlib
import inspect
import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import EvalPrediction, pipeline

import hf_any3d
from hf_any3d import conversions
from hf_any3d.chat import ChatSession
from hf_any3d.data import (
    PointCloud,
    draw_fold,
    files_to_points,
    load_point_dataset,
    split_into_blocks,
    validation_split,
)
from hf_any3d.data.files import (
    PointCloudData,
    PointCloudError,
    PointCloudFileError,
    example_file,
    read_point_cloud,
    read_rgbd,
    write_labels,
    write_point_cloud,
)
from hf_any3d.evaluation import compute_classification_metrics, confusion_matrix, detection_metrics
from hf_any3d.export.onnx import export_file
from hf_any3d.integration.auto import AutoModelForPointCloudClassification
from hf_any3d.many_files import classify, read_point_clouds
from hf_any3d.modeling import point_ops
from hf_any3d.modeling.encoders import UnsupportedEncoder
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError, EncoderUnavailableError
from hf_any3d.training.few_scans.training import learn_few_scans
from tests.chat.tiny_chat_model import tiny_chat_pipeline
from tests.errors import raises
from tests.tiny_act import tiny_act
from tests.tiny_encoders import pushed_encoder, saved_encoder, tiny_model
from tests.tiny_spatiallm import tiny_processor

POINTS = np.random.default_rng(0).random((64, 3), np.float32)
CLOUD = PointCloudData(POINTS)
CLOUDS = torch.from_numpy(POINTS)[None]


def cut_off(folder: Path) -> Path:
    """Write a file that lacks its last bytes."""
    path = folder / "cut.ply"
    path.write_bytes(example_file("chair.ply").read_bytes()[:-100])
    return path


@cache
def classifier() -> Any:
    processor = hf_any3d.PointCloudProcessor(num_points=64)
    model = tiny_act(hf_any3d.ActForPointCloudClassification)
    return pipeline("point-cloud-classification", model=model, feature_extractor=processor, device="cpu")


# Name of a door -> error that its docstring names, what the message names, and a call that raises it.
Provoked = tuple[type[Exception], str, Callable[[Path], Any]]
DOORS: dict[str, list[Provoked]] = {
    "data.files.read_point_cloud": [
        (PointCloudFileError, "cut.ply", lambda folder: read_point_cloud(cut_off(folder))),
        (PointCloudFileError, "nowhere.ply", lambda folder: read_point_cloud(folder / "nowhere.ply")),
        (ValueError, "on_invalid", lambda _: read_point_cloud(example_file(), on_invalid="skip")),
    ],
    "data.files.write_point_cloud": [
        (ValueError, "chair.stl", lambda folder: write_point_cloud(folder / "chair.stl", CLOUD))
    ],
    "data.files.write_labels": [
        (PointCloudFileError, "chair.ply", lambda folder: write_labels(example_file(), folder / "new.ply", [0, 1])),
        (ValueError, "new.stl", lambda folder: write_labels(example_file(), folder / "new.stl", [0, 1])),
        (OSError, "chair.ply", lambda _: write_labels(example_file(), Path(example_file()) / "new.ply", [0] * 964)),
    ],
    "data.files.example_file": [(ValueError, "horse.ply", lambda _: example_file("horse.ply"))],
    "data.files.PointCloudData": [
        (PointCloudError, "points", lambda _: PointCloudData(np.full((4, 3), np.nan))),
        (PointCloudError, "colors", lambda _: PointCloudData(POINTS, colors=POINTS * 300)),
    ],
    "data.load_point_dataset": [
        (ValueError, "'shape'", lambda _: load_point_dataset("shape")),
        (ValueError, "split", lambda _: load_point_dataset("shapes", split="validate")),
        (FileNotFoundError, "nowhere", lambda folder: load_point_dataset("folder", data_dir=folder / "nowhere")),
    ],
    "data.PointCloud": [(ValueError, "format", lambda _: PointCloud(format="stl"))],
    "data.PointCloud.encode_example": [
        (PointCloudError, "(4, 2)", lambda _: PointCloud().encode_example({"points": np.zeros((4, 2))})),
        (PointCloudFileError, "chair.doc", lambda _: PointCloud().encode_example("chair.doc")),
    ],
    "data.PointCloud.decode_example": [
        (
            PointCloudFileError,
            "cut.ply",
            lambda folder: PointCloud().decode_example({"path": str(cut_off(folder)), "bytes": None}),
        ),
        (RuntimeError, "decode=True", lambda _: PointCloud(decode=False).decode_example({"path": "chair.ply"})),
    ],
    "PointCloudProcessor": [
        (TypeError, "num_point", lambda _: hf_any3d.PointCloudProcessor(num_point=1024)),
        (ValueError, "sampling", lambda _: hf_any3d.PointCloudProcessor(sampling="fps")),
    ],
    "PointCloudProcessor.__call__": [
        (PointCloudError, "cloud 1", lambda _: hf_any3d.PointCloudProcessor()([POINTS, POINTS[:2]])),
        (PointCloudFileError, "cut.ply", lambda folder: hf_any3d.PointCloudProcessor()(cut_off(folder))),
    ],
    "tasks.base.PointCloudPipeline": [
        (
            OSError,
            "preprocessor_config.json",
            lambda folder: pipeline("point-cloud-classification", model=without_processor(folder)),
        ),
        (
            ValueError,
            "processor",
            lambda _: pipeline("point-cloud-classification", model=tiny_act(hf_any3d.ActForPointCloudClassification)),
        ),
    ],
    "tasks.base.PointCloudPipeline.__call__": [
        (PointCloudFileError, "cut.ply", lambda folder: classifier()(cut_off(folder))),
        (TypeError, "topk", lambda _: classifier()(POINTS, topk=3)),
        (ValueError, "top_k", lambda _: classifier()(POINTS, top_k=0)),
    ],
    "PointTransformerV3Processor.__call__": [
        (
            PointCloudError,
            "cloud 1",
            lambda _: hf_any3d.PointTransformerV3Processor(features=["xyz"])([POINTS, POINTS[:0]]),
        ),
        (PointCloudFileError, "cut.ply", lambda folder: hf_any3d.PointTransformerV3Processor()(cut_off(folder))),
    ],
    "data.files.read_rgbd": [
        (PointCloudFileError, "depth.png", lambda folder: read_rgbd(folder / "depth.png", folder / "camera.json"))
    ],
    "data.files_to_points": [
        (ValueError, "'cloud'", lambda _: files_to_points(Dataset.from_dict({"label": [0]}), column="cloud")),
        (PointCloudFileError, "cut.ply", lambda folder: files_to_points(files(cut_off(folder)))),
    ],
    "data.validation_split": [(ValueError, "fraction", lambda _: validation_split(rows(2), 20))],
    "data.draw_fold": [
        (ValueError, "way", lambda _: draw_fold(DatasetDict(train=rows(2), test=rows(2)), way=5, shot=1, fold=0))
    ],
    "data.split_into_blocks": [
        (ValueError, "block_size", lambda _: split_into_blocks(POINTS, 8, block_size=0)),
        (ValueError, "overlap", lambda _: split_into_blocks(POINTS, 8, 0.5, 1.0)),
        (ValueError, "up_axis", lambda _: split_into_blocks(POINTS, 8, up_axis="w")),
    ],
    "MiniGPT3DProcessor.__call__": [
        (ValueError, "text has 0 places", lambda _: chat().processor("What is this?", POINTS)),
        (PointCloudFileError, "cut.ply", lambda folder: chat().processor("<PointCloudHere>", [cut_off(folder)])),
    ],
    "SpatialLMProcessor.__call__": [
        (ValueError, "task", lambda _: tiny_processor()(POINTS, task="walls")),
        (ValueError, "horse", lambda _: tiny_processor()(POINTS, classes=["horse"])),
        (PointCloudFileError, "cut.ply", lambda folder: tiny_processor()(cut_off(folder))),
    ],
    "ChatSession.ask": [
        (PointCloudFileError, "cut.ply", lambda folder: ChatSession(chat()).ask("What?", cut_off(folder))),
        (ValueError, "tokens", lambda _: ChatSession(chat()).ask("What? " * 200)),
    ],
    "tasks.zero_shot_classification.pipeline.ZeroShotPointCloudClassificationPipeline.__call__": [
        (ValueError, "candidate_labels", lambda _: zero_shot()(POINTS)),
        (ValueError, "hypothesis_template", lambda _: zero_shot()(POINTS, ["a", "b"], hypothesis_template="a chair")),
    ],
    "AutoModelForPointCloudClassification.from_pretrained": [
        (FileNotFoundError, "./nowhere", lambda _: AutoModelForPointCloudClassification.from_pretrained("./nowhere")),
        (OSError, "me/nothing", lambda _: AutoModelForPointCloudClassification.from_pretrained("me/nothing")),
        (
            ValueError,
            "classifier",
            lambda folder: AutoModelForPointCloudClassification.from_pretrained(lacking(folder)),
        ),
    ],
    "Any2PointForPointCloudClassification.from_encoder_pretrained": [
        (ValueError, "encoder_name_or_path", lambda _: build()),
        (UnsupportedEncoder, "funnel", lambda folder: build(unsupported(folder))),
        (EncoderUnavailableError, "nowhere", lambda folder: build(config=config_of(moved_encoder(folder)))),
        (OSError, "me/nothing", lambda _: build("me/nothing")),
        (TypeError, "num_token", lambda _: build(saved_encoder("bert"), num_token=8)),
    ],
    "Any2PointForPointCloudClassification.from_pretrained": [
        (EncoderMismatchError, "encoder", lambda folder: opened(changed_encoder(folder))),
        (EncoderUnavailableError, "nowhere", lambda folder: opened(moved_encoder(folder))),
        (
            ValueError,
            "classifier",
            lambda folder: hf_any3d.ActForPointCloudClassification.from_pretrained(lacking(folder)),
        ),
    ],
    "PointFeaturesForPointCloudClassification.from_parts_pretrained": [
        (
            ValueError,
            "wrap_labels",
            lambda _: hf_any3d.PointFeaturesForPointCloudClassification.from_parts_pretrained(
                wrap=tiny_act(hf_any3d.ActModel), wrap_labels=3
            ),
        ),
        (
            OSError,
            "me/nothing",
            lambda _: hf_any3d.PointFeaturesForPointCloudClassification.from_parts_pretrained(encoder="me/nothing"),
        ),
    ],
    "Detr3DForPointCloudObjectDetection.from_point_encoder_pretrained": [
        (ValueError, "name", lambda _: hf_any3d.Detr3DForPointCloudObjectDetection.from_point_encoder_pretrained()),
        (
            OSError,
            "me/nothing",
            lambda _: hf_any3d.Detr3DForPointCloudObjectDetection.from_point_encoder_pretrained("me/nothing"),
        ),
    ],
    "open_published": [
        (ValueError, "me/nothing", lambda _: hf_any3d.open_published("me/nothing")),
        (FileNotFoundError, "nowhere.pth", lambda _: hf_any3d.open_published("./nowhere.pth")),
        (OSError, "OpenShape", lambda _: hf_any3d.open_published("OpenShape/openshape-pointbert-vitb32-rgb")),
    ],
    "conversions.convert_any2point": [
        (
            ValueError,
            "variant",
            lambda folder: conversions.convert_any2point(folder / "a.pth", "clip", folder / "new"),
        ),
        (
            FileExistsError,
            "taken",
            lambda folder: conversions.convert_any2point(folder / "a.pth", "clip-scan", taken(folder)),
        ),
        (
            FileNotFoundError,
            "a.pth",
            lambda folder: conversions.convert_any2point(folder / "a.pth", "clip-scan", folder / "new"),
        ),
    ],
    "conversions.convert_act": [
        (ValueError, "some.pth", lambda folder: conversions.convert_act(checkpoint(folder), "cls", folder / "new")),
        (FileExistsError, "taken", lambda folder: conversions.convert_act(folder / "a.pth", "cls", taken(folder))),
        (FileNotFoundError, "a.pth", lambda folder: conversions.convert_act(folder / "a.pth", "cls", folder / "new")),
    ],
    "conversions.convert_minigpt3d": [
        (ValueError, "dtype", lambda folder: minigpt3d(folder / "new", dtype="float8")),
        (FileNotFoundError, "none.pth", lambda folder: minigpt3d(folder / "new")),
        (FileExistsError, "taken", lambda folder: minigpt3d(taken(folder))),
    ],
    "training.few_scans.training.learn_few_scans": [
        (PointCloudFileError, "cut.ply", lambda folder: learn_few_scans(few(folder, cut_off(folder)))),
        (ValueError, "chair", lambda folder: learn_few_scans(few(folder, example_file()))),
        (OSError, "nowhere", lambda folder: learn_few_scans(few_words(folder / "nowhere"))),
    ],
    "evaluation.confusion_matrix": [
        (ValueError, "predictions", lambda _: confusion_matrix([0, 7], [0, 1], num_classes=2))
    ],
    "evaluation.compute_classification_metrics": [
        (
            ValueError,
            "NaN",
            lambda _: compute_classification_metrics(EvalPrediction(np.full((2, 3), np.nan), np.zeros(2, int))),
        )
    ],
    "evaluation.detection_metrics": [
        (ValueError, "thresholds", lambda _: detection_metrics([], [], thresholds=(25,))),
        (ValueError, "references", lambda _: detection_metrics([], [{}])),
    ],
    "GuidedAdapterConfig": [
        (ValueError, "pooling", lambda _: hf_any3d.GuidedAdapterConfig(pooling="max")),
        (
            ValueError,
            "target_modules",
            lambda _: hf_any3d.GuidedAdapterConfig(target_modules="x", layers_to_transform=[0]),
        ),
        (
            ValueError,
            "layers_to_transform",
            lambda _: get_peft_model(tiny_model(), hf_any3d.GuidedAdapterConfig(layers_to_transform=[9])),
        ),
    ],
    "trainable_module_names": [
        (ValueError, "Linear", lambda _: hf_any3d.trainable_module_names(torch.nn.Linear(2, 2)))
    ],
    "encoder_linear_pattern": [
        (ValueError, "Linear", lambda _: hf_any3d.encoder_linear_pattern(torch.nn.Linear(2, 2)))
    ],
    "segment": [
        (
            ValueError,
            "point-cloud-classification",
            lambda folder: hf_any3d.segment(POINTS, model=without_processor(folder)),
        ),
        (OSError, "me/nothing", lambda _: hf_any3d.segment(POINTS, model="me/nothing")),
    ],
    "TextBank": [(ValueError, "seat", lambda _: hf_any3d.TextBank({"seat": torch.zeros(3)}))],
    "TextBank.encode": [(ValueError, "leg", lambda _: hf_any3d.TextBank({"seat": torch.ones(3)}).encode(["leg"]))],
    "ActForPointCloudClassification.fit_unknown_score": [
        (
            ValueError,
            "logits",
            lambda _: tiny_act(hf_any3d.ActForPointCloudClassification).fit_unknown_score(
                torch.ones(4, 8), torch.full((4, 3), np.nan)
            ),
        ),
        (
            ValueError,
            "groups",
            lambda _: tiny_act(hf_any3d.ActForPointCloudClassification).fit_unknown_score(
                torch.ones(4, 8), torch.ones(4, 3), [1, 1, 1, 1]
            ),
        ),
    ],
    "export.onnx.export_file": [
        (
            ValueError,
            "model.json",
            lambda folder: export_file(tiny_act(hf_any3d.ActForPointCloudClassification), folder / "model.json"),
        )
    ],
    "many_files.read_point_clouds": [
        (FileNotFoundError, "nowhere", lambda folder: read_point_clouds(folder / "nowhere")),
        (ValueError, "on_invalid", lambda _: read_point_clouds(example_file(), on_invalid="skip")),
    ],
    "many_files.classify": [
        (ValueError, "top_k", lambda _: classify(read_point_clouds(example_file()), top_k=0)),
        (OSError, "nowhere", lambda folder: classify(read_point_clouds(example_file()), folder / "nowhere")),
    ],
    "modeling.point_ops.knn": [
        (ValueError, "k", lambda _: point_ops.knn(CLOUDS, CLOUDS, 100)),
        (ValueError, "k", lambda _: point_ops.knn(CLOUDS, CLOUDS, 0)),
        (ValueError, "batch", lambda _: point_ops.knn(CLOUDS, CLOUDS.repeat(2, 1, 1), 1)),
    ],
    "modeling.point_ops.ball_query": [(ValueError, "radius", lambda _: point_ops.ball_query(CLOUDS, CLOUDS, -1, 4))],
    "modeling.point_ops.farthest_point_sample": [
        (ValueError, "num_samples", lambda _: point_ops.farthest_point_sample(CLOUDS, 100)),
        (ValueError, "num_samples", lambda _: point_ops.farthest_point_sample(CLOUDS, 0)),
    ],
}


def files(*paths: Path) -> Dataset:
    """Return rows of files."""
    return Dataset.from_dict({"point_cloud": [str(path) for path in paths]}).cast_column("point_cloud", PointCloud())


def rows(classes: int) -> Dataset:
    """Return a row of each class."""
    labels = Dataset.from_dict({"label": list(range(classes))})
    return labels.cast_column("label", ClassLabel(names=[f"class {number}" for number in range(classes)]))


@cache
def chat() -> Any:
    return tiny_chat_pipeline()


@cache
def zero_shot() -> Any:
    from tests.tiny_text_towers import tiny_zero_shot_model

    processor = hf_any3d.PointCloudProcessor(num_points=64)
    model = tiny_zero_shot_model()
    return pipeline("zero-shot-point-cloud-classification", model=model, feature_extractor=processor, device="cpu")


def build(*names: str, **settings: Any) -> Any:
    return hf_any3d.Any2PointForPointCloudClassification.from_encoder_pretrained(*names, **settings)


def opened(folder: Path) -> Any:
    return hf_any3d.Any2PointForPointCloudClassification.from_pretrained(folder)


def config_of(folder: Path) -> Any:
    return hf_any3d.Any2PointConfig.from_pretrained(folder)


def lacking(folder: Path) -> str:
    """Save a model without the weights of its head."""
    without_processor(folder)
    file = folder / "model.safetensors"
    save_file(
        {name: tensor for name, tensor in load_file(file).items() if "classifier" not in name}, file, {"format": "pt"}
    )
    return str(folder)


def unsupported(folder: Path) -> str:
    """Write the config of an encoder of a family that is not supported."""
    from transformers import FunnelConfig, FunnelModel

    FunnelModel(FunnelConfig(block_sizes=[1], d_model=8, n_head=1, d_head=8, d_inner=8, vocab_size=8)).save_pretrained(
        folder
    )
    return str(folder)


def changed_encoder(folder: Path) -> Path:
    """Save a model, and record another checksum of its encoder."""
    return with_record(folder, checksum="tensors-sha256:" + "0" * 64)


def moved_encoder(folder: Path) -> Path:
    """Save a model, and record another place of its encoder."""
    return with_record(folder, name_or_path="nowhere/bert")


def with_record(folder: Path, **record: Any) -> Path:
    tiny_model(pushed_encoder("bert")).save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["parts"]["encoder"] |= record
    file.write_text(json.dumps(config))
    return folder


def taken(folder: Path) -> Path:
    """Make a folder that holds a file."""
    (folder / "taken").mkdir()
    (folder / "taken" / "file").touch()
    return folder / "taken"


def checkpoint(folder: Path) -> Path:
    torch.save({"base_model": {"weight": torch.ones(2)}}, folder / "some.pth")
    return folder / "some.pth"


def minigpt3d(output: Path, **settings: Any) -> Any:
    parts = dict.fromkeys(("point_encoder", "qformer", "language_model", "checkpoint"), "none.pth")
    return conversions.convert_minigpt3d(output, **parts, **settings)


def few(folder: Path, source: Path) -> list[str]:
    """Return the words of a training on a folder with two copies of a file."""
    scans = folder / "scans" / "chair"
    scans.mkdir(parents=True)
    for number in range(2):
        shutil.copy(source, scans / f"{number}-{source.name}")
    return few_words(folder / "scans")


def few_words(scans: Path) -> list[str]:
    return ["--dataset_name", "folder", "--data_dir", str(scans), "--output_dir", str(scans.parent / "learned")]


def without_processor(folder: Path) -> str:
    """Save a model alone."""
    tiny_act(hf_any3d.ActForPointCloudClassification).save_pretrained(folder)
    return str(folder)


def found(name: str) -> Any:
    """Return the object of a name below hf_any3d."""
    parts = name.split(".")
    for count in range(len(parts), -1, -1):
        try:
            thing = importlib.import_module(".".join(["hf_any3d", *parts[:count]]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            thing = getattr(thing, part)
        return thing
    raise AssertionError(name)


def promised(name: str) -> set[str]:
    """Return the names of the errors in the docstring of a door."""
    text = inspect.getdoc(found(name)) or ""
    section = re.split(r"\n(?=\S)", text.partition("Raises:\n")[2])[0]
    return set(re.findall(r"^    (\w+): \S", section, re.MULTILINE))


@pytest.mark.parametrize("name", DOORS)
def test_a_door_raises_the_errors_that_it_promises(name, tmp_path):
    names = promised(name)
    for number, (error, culprit, provoke) in enumerate(DOORS[name]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with raises(error, naming=culprit) as raised:
            provoke(folder)
        # Errors of other libraries are subclasses of the built-in ones that docstrings name.
        assert next(kind.__name__ for kind in raised.type.__mro__ if kind.__name__ in names) == error.__name__
    # A package that is optional is missing elsewhere.
    assert names - {"ImportError"} == {error.__name__ for error, _, _ in DOORS[name]}

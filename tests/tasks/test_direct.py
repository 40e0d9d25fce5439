"""Models that commands open without transformers: the answers are a pipeline's, whatever is changed in a directory."""

import functools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoFeatureExtractor, PreTrainedConfig, pipeline

from hf_any3d import example_file
from hf_any3d.data.files import PointCloudData
from hf_any3d.pipelines import default_model
from hf_any3d.tasks.direct import open_direct
from tests.cli.conftest import run
from tests.extensions import HAS_SURVEY
from tests.turns import ALL_PAIRS, by_turns

CLASSIFY, SEGMENT = "point-cloud-classification", "point-cloud-segmentation"
SCAN = PointCloudData(points=np.random.default_rng(0).uniform(0, 6, (400, 3)).astype(np.float32))
CHAIR = str(example_file("chair.ply"))
GONE = object()
# Of each kind that JSON has, and some that settings have by chance.
VALUES = (GONE, None, True, 0, 0.5, "relu", [0.1, 0.2], {"0": "a"}, {"__float__": "NaN"})
# Keys of transformers that no config class here has as a field, of today and of earlier releases.
FURTHER_KEYS = """
    torch_dtype _name_or_path name_or_path num_labels output_attentions use_return_dict _commit_hash revision peft_type
    attn_implementation _attn_implementation experts_implementation torchscript pruned_heads use_bfloat16 unknown_key
    quantization_config adapter_config tie_word_embeddings finetuning_task task_specific_params feature_extractor_type
    processor_class tokenizer_class custom_pipelines use_cache to_dict text_config gradient_checkpointing is_decoder
""".split()
FURTHER_VALUES = {
    "dtype": ("bfloat16", "float16", "float64", "auto", "torch.float32", "float32"),
    "torch_dtype": ("bfloat16", "float16", "float32"),
    "model_type": ("act3d", "act3d_autoencoder", "local_features", "dgcnn", "bert"),
    "architectures": (["ActForPreTraining"], ["ActForPointCloudClassification", "ActModel"], [["ActModel"]]),
    "auto_map": ({"AutoConfig": "code.Config"}, {"AutoModel": "me/code--model.Model"}, "code.Config"),
    "problem_type": ("regression", "multi_label_classification", "single_label_classification"),
    "id2label": ({"0": None}, {"chair": 0}, {"0": "a", "2": "b"}, [["0", "a"]], {"0": 1, "1": 2}, {"-1": "a"}),
    "label2id": ({"chair": 0}, {"a": 0, "b": 1, "c": 2}, {"a": "0"}),
    "_attn_implementation": ("eager", "sdpa"),
    "pooling": (["max"], ["mean"], ["cls", "prompt_mean"]),
    "smoothing_edge": (1.0, 2.5),
    "temperature": (2.0, 1e9),
}


@pytest.fixture(params=[CLASSIFY, SEGMENT] if HAS_SURVEY else [CLASSIFY])
def task(request):
    return request.param


@pytest.fixture
def folder(task, tmp_path):
    packaged = default_model(task if task == CLASSIFY else "point-cloud-inventory")
    return Path(shutil.copytree(packaged, tmp_path / "model"))


def answer_of(task: str, open_model: Callable[[], Any]) -> dict[Any, float]:
    """Return the numbers that a pipeline answers with, by what they belong to; nothing if it refuses."""
    numbers = {}
    torch.manual_seed(0)  # of a processor that draws anew
    try:
        pipe = open_model()
        if task == SEGMENT:
            for name, values in pipe(SCAN).items():
                if isinstance(values, np.ndarray):
                    numbers |= {(name, place): value for place, value in enumerate(values.ravel().tolist())}
        else:
            for row in pipe(CHAIR, top_k=None):
                numbers |= {(name, row["label"]): row[name] for name in row.keys() - {"label"}}
    except Exception:
        return {}
    return numbers


def is_equal(task: str, folder: Path, seen: set[str] | None = None) -> bool | None:
    """Return whether both doors answer the same; None if the command opens a directory with transformers, too.

    Answers by settings that have been `seen` are not compared again.
    """
    direct = open_direct(task, str(folder), "cpu")
    if direct is None:
        return None
    if seen is not None:
        opened = (AutoConfig.from_pretrained(folder), AutoFeatureExtractor.from_pretrained(folder))
        settings = repr([one.to_dict() for one in (direct.model.config, direct.feature_extractor, *opened)])
        if settings in seen:
            return True
        seen.add(settings)
    open_pipeline = functools.partial(pipeline, task, str(folder), device="cpu")
    return answer_of(task, lambda: direct) == pytest.approx(answer_of(task, open_pipeline), abs=1e-5, nan_ok=True)


def with_json(file: Path, name: str, value: Any) -> None:
    stored = json.loads(file.read_text(encoding="utf-8"))
    stored.pop(name, None)
    file.write_text(json.dumps(stored if value is GONE else {**stored, name: value}), encoding="utf-8")


def changes_of(file: Path, keys: set[str]) -> Iterator[tuple[str, Any]]:
    """Give each key of a file values by turns, one after the other, and yield both."""
    text = file.read_text(encoding="utf-8")
    every = sorted(keys | json.loads(text).keys())
    turns = set(by_turns(every, range(6)))
    for key in every:
        for number, value in enumerate((*VALUES, *FURTHER_VALUES.get(key, ()))):
            if (key, number % 6) not in turns:
                continue
            file.write_text(text, encoding="utf-8")
            with_json(file, key, value)
            yield key, value


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_with_any_changed_setting_a_directory_is_answered_as_by_a_pipeline(task, folder, name):
    keys = {*FURTHER_KEYS, *(PreTrainedConfig().to_dict() if name == "config.json" else ())}
    counts, seen = Counter(), set()
    for key, value in changes_of(folder / name, keys):
        counts[is_equal(task, folder, seen)] += 1
        assert counts[False] == 0, (key, value)
    least, most = (5, 200) if ALL_PAIRS else (2, 30)
    assert len(seen) > least and counts[None] > most, counts


def of_other_precision(folder: Path, dtype: torch.dtype) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value.to(dtype) for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )


OTHER_PROCESSOR = {"num_points": 64, "feature_extractor_type": "PointCloudProcessor"}
FILES = {
    "adapter_config.json": '{"peft_type": "LORA"}',
    "generation_config.json": "{}",
    "processor_config.json": json.dumps({"feature_extractor": OTHER_PROCESSOR}),
    "video_preprocessor_config.json": "{}",
    "tokenizer_config.json": "{}",
    "chat_template.jinja": "",
    "pytorch_model.bin": "",
    "model.safetensors.index.json": '{"metadata": {}, "weight_map": {}}',
    "model-00001-of-00002.safetensors": "",
    "modeling_act.py": "raise SystemExit",
    "config.4.0.0.json": "{}",
    "anything": "",
}
CHANGES: dict[str, Callable[[Path], Any]] = {
    **{name: lambda folder, name=name: (folder / name).write_text(FILES[name]) for name in FILES},
    "folder": lambda folder: (folder / "processor").mkdir(),
    "link": lambda folder: (folder / "adapter_config.json").symlink_to("gone"),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no processor": lambda folder: (folder / "preprocessor_config.json").unlink(),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no object": lambda folder: (folder / "config.json").write_text("[]"),
    "half weights": lambda folder: of_other_precision(folder, torch.float16),
    "double weights": lambda folder: of_other_precision(folder, torch.float64),
    "whole weights": lambda folder: of_other_precision(folder, torch.int64),
    "half weights without dtype": lambda folder: (
        with_json(folder / "config.json", "dtype", GONE),
        of_other_precision(folder, torch.bfloat16),
    ),
    "weights of another library": lambda folder: save_file(
        load_file(folder / "model.safetensors"), folder / "model.safetensors", {"format": "mlx"}
    ),
    "weights without a library": lambda folder: save_file(
        load_file(folder / "model.safetensors"), folder / "model.safetensors"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_with_any_changed_file_a_directory_is_answered_as_by_a_pipeline(task, folder, change):
    CHANGES[change](folder)
    assert is_equal(task, folder) is not False


def test_what_no_program_reads_and_links_to_files_leave_a_directory_direct(task, folder, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in folder.iterdir():
        (linked / file.name).symlink_to(file)
    (linked / "README.md").unlink()
    (linked / ".gitattributes").write_text("")
    assert is_equal(task, linked) is True


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("config.json", "torch_dtype", "bfloat16"),
        ("config.json", "architectures", ["ActForPreTraining"]),
        ("config.json", "problem_type", "multi_label_classification"),
        ("config.json", "output_attentions", True),
        (
            "processor_config.json",
            "feature_extractor",
            {"num_points": 64, "feature_extractor_type": "PointCloudProcessor"},
        ),
    ],
)
def test_the_command_answers_as_a_pipeline(tmp_path, file, name, value):
    folder = Path(shutil.copytree(default_model(CLASSIFY), tmp_path / "model"))
    if file == "processor_config.json":
        (folder / file).write_text("{}")
    with_json(folder / "config.json", "dtype", GONE)
    with_json(folder / file, name, value)
    code, out, _ = run("predict", CHAIR, "--model", folder, "--json", "--device", "cpu")
    expected = answer_of(CLASSIFY, functools.partial(pipeline, CLASSIFY, str(folder), device="cpu"))
    assert (code == 0) == bool(expected)
    for row in json.loads(out)[0]["predictions"] if expected else ():
        assert row["score"] == pytest.approx(expected["score", row["label"]], abs=1e-4)

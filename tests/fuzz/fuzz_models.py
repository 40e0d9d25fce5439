"""Model directories of strangers: settings, weights, adapters, templates and tokenizers that no model has."""

import json
import re
import shutil
import struct
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import huggingface_hub.constants
import numpy as np
import torch
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, pipeline

from hf_any3d import (
    ActAutoencoder,
    ActForPointCloudClassification,
    Any2PointForPointCloudClassification,
    AutoModelForPointCloudClassification,
    AutoModelForPointCloudObjectDetection,
    AutoModelForPointCloudReconstruction,
    AutoModelForPointCloudTextToText,
    Detr3DForPointCloudObjectDetection,
    GuidedAdapterConfig,
    MiniGPT3DForConditionalGeneration,
    MiniGPT3DProcessor,
    PointCloudProcessor,
    encoder_linear_pattern,
    trainable_module_names,
)
from hf_any3d.utils.messages import one_line
from tests.chat.tiny_chat_model import tiny_chat_pipeline
from tests.fuzz.damage import mutate
from tests.fuzz.target import EXECUTES, Target, canary
from tests.tiny_act import tiny_act
from tests.tiny_autoencoders import tiny_autoencoder
from tests.tiny_detr3d import BOX_FRAME, answering_detector
from tests.tiny_encoders import tiny_model

FILES = Path(__file__).parents[1] / "files"
LABELS = {0: "bottle", 1: "chair", 2: "lamp"}
# Sizes that a machine has memory for: settings of models have the trust that transformers gives them.
NUMBERS = [-1, 0, 1, 2, 3, 7, 65, 511, 0.5, -0.5, 1e-30, 1e30, 1e308, float("nan"), float("inf"), float("-inf")]
OTHERS = [
    None,
    True,
    False,
    "",
    "x",
    "auto",
    "../../etc",
    "\x1b[2J",
    "a\nb",
    "\ud800",
    [],
    [1],
    {},
    {"a": {}},
    [[]],
    "9" * 5000,
]
PATTERNS = ["(" * 300, ".*", "", "all-linear", "query"]
TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages[0]['nothing']['there'] }}",
    "{% for m in messages %}",
    "{{ raise_exception('no\n\x1b[2J') }}",
    "<PointCloudHere>" * 500,
    "",
]
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X9")
_CLASSIFIERS = ("point-cloud-classification", AutoModelForPointCloudClassification)
# Seed: task, auto class and class.
KINDS = {
    "guided": (*_CLASSIFIERS, Any2PointForPointCloudClassification),
    "lora": (*_CLASSIFIERS, Any2PointForPointCloudClassification),
    "act": (*_CLASSIFIERS, ActForPointCloudClassification),
    "detector": (
        "point-cloud-object-detection",
        AutoModelForPointCloudObjectDetection,
        Detr3DForPointCloudObjectDetection,
    ),
    "autoencoder": ("point-cloud-reconstruction", AutoModelForPointCloudReconstruction, ActAutoencoder),
    "chat": (
        "point-cloud-text-to-text",
        AutoModelForPointCloudTextToText,
        MiniGPT3DForConditionalGeneration,
    ),
}
_ADAPTERS = ("pipeline", "auto", "class", "base", "processor", "peft", "auto peft")
_MODELS = ("pipeline", "auto", "class", "base", "processor")
DOORS = {"guided": _ADAPTERS, "lora": _ADAPTERS, "act": _MODELS, "detector": _MODELS}
DOORS |= {"autoencoder": _MODELS, "chat": _MODELS}
CLOUD = str(FILES / "chair.ply")
_QUESTION = [{"type": "point_cloud", "path": CLOUD}, {"type": "text", "text": "What is this?"}]


@dataclass
class Case:
    """A directory, as the files that are not those of its seed, and what was done to it."""

    seed: str
    files: dict[str, bytes | None]
    done: list[str]
    door: str = "pipeline"


class Models(Target):
    """A changed directory opens and answers with finite scores, or is refused."""

    name = "model directories"
    refusals = (ValueError, OSError, ImportError)
    inputs = 80
    # Changed names of encoders are looked for on the hub, which a test has none of.
    forbidden = tuple(event for event in EXECUTES if event != "socket.connect")

    def prepare(self, folder: Path) -> None:  # noqa: D102
        self.seeds = {name: folder / name for name in KINDS}
        self.base = tiny_model(id2label=LABELS)  # here, since copies of tiny models are pickled
        _classifier(GuidedAdapterConfig).save_pretrained(self.seeds["guided"])
        _classifier(_lora).save_pretrained(self.seeds["lora"])
        tiny_act(ActForPointCloudClassification, id2label=LABELS).save_pretrained(self.seeds["act"])
        tiny_autoencoder("vit").save_pretrained(self.seeds["autoencoder"])
        tiny_chat_pipeline().save_pretrained(self.seeds["chat"])
        answering_detector(id2label=LABELS).save_pretrained(self.seeds["detector"])
        PointCloudProcessor(num_points=64, **BOX_FRAME).save_pretrained(self.seeds["detector"])
        for name in ("guided", "lora", "act", "autoencoder"):
            PointCloudProcessor(num_points=64).save_pretrained(self.seeds[name])
        for name in self.seeds:
            for door in DOORS[name]:
                (folder / "warm").mkdir()
                self.attempt(Case(name, {}, [], door), folder / "warm")
                shutil.rmtree(folder / "warm")

    def make(self, generator: np.random.Generator, folder: Path) -> Case:  # noqa: D102
        torch.set_num_threads(1)  # the threads of the process that this one is a copy of are not there
        seed = str(generator.choice(list(self.seeds)))
        files: dict[str, bytes | None] = {}
        done: list[str] = []
        names = sorted(path.name for path in self.seeds[seed].iterdir() if path.is_file() and path.suffix != ".md")
        for _ in range(int(generator.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))):
            name = names[int(generator.integers(len(names)))]
            if generator.random() < 0.4:  # what decides most
                name = "config.json"
            data = files.get(name) or (self.seeds[seed] / name).read_bytes()
            kind = generator.random()
            if kind < 0.03:
                files[name] = None
                done.append(f"{name} is missing")
            elif kind < 0.15:
                files[name] = mutate(data, generator)
                done.append(f"{name} is damaged")
            elif name.endswith(".json"):
                files[name], what = _changed_json(data, generator, canary(folder))
                done.append(f"{name}: {what}")
            elif name.endswith(".safetensors"):
                files[name], what = _changed_weights(data, generator)
                done.append(f"{name}: {what}")
            elif name.endswith(".jinja"):
                files[name] = TEMPLATES[int(generator.integers(len(TEMPLATES)))].encode()
                done.append(f"{name}: {files[name][:40]!r}")
            else:
                files[name] = mutate(data, generator)
                done.append(f"{name} is damaged")
        door = str(generator.choice(DOORS[seed]))
        if door == "base" and not _names_its_type(files.get("config.json", b'{"model_type": "ours"}')):
            door = "class"  # AutoModel knows nothing of ours before transformers has read this file
        return Case(seed, files, done, door)

    def attempt(self, case: Case, folder: Path) -> None:  # noqa: D102
        model = folder / "model"
        shutil.copytree(self.seeds[case.seed], model)
        for name, data in case.files.items():
            if data is None:
                (model / name).unlink(missing_ok=True)
            else:
                (model / name).write_bytes(data)
        (model / "evil.py").write_text(f"open({str(canary(folder))!r}, 'w')\n")
        with patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True):
            self._open(case, str(model))

    def _open(self, case: Case, name: str) -> None:
        task, auto_class, own_class = KINDS[case.seed]
        points = torch.rand(1, 64, 3, generator=torch.Generator().manual_seed(0))
        if case.door == "processor":
            (MiniGPT3DProcessor if case.seed == "chat" else PointCloudProcessor).from_pretrained(name)
        elif case.door == "peft":
            PeftModel.from_pretrained(self._base(), name)(points)
        elif case.door == "pipeline" and case.seed == "chat":
            (answer,) = pipeline(task, model=name)([{"role": "user", "content": _QUESTION}], max_new_tokens=3)
            assert isinstance(answer["generated_text"][-1]["content"], str)
        elif case.door == "pipeline":
            (answer,) = pipeline(task, model=name)([CLOUD])
            if case.seed == "detector":
                answer = [{"score": value} for one in answer for value in (one["score"], *one["box"]["center"])] or [
                    {"score": 0.0}
                ]
            scores = [answer["chamfer_l2"]] if case.seed == "autoencoder" else [one["score"] for one in answer]
            assert scores and np.isfinite(scores).all()
        else:
            opened = {"auto": auto_class, "class": own_class, "base": AutoModel, "auto peft": AutoPeftModel}[case.door]
            model = opened.from_pretrained(name)
            if case.seed != "chat":
                model(points)

    def _base(self) -> Any:
        torch.manual_seed(0)
        return deepcopy(self.base)

    def check_refusal(self, error: BaseException, case: Case, folder: Path) -> None:  # noqa: D102
        text = one_line(error)
        # What is wrong with a question names the template or the cloud instead; transformers asks about code.
        named = str(folder / "model") in text or case.seed == "chat" or "execute the code" in text
        # So do errors of a cloud and of the hub. Without a config, an adapter is one of its encoder.
        of_others = r"cloud|points has shape|at least min_points|onfiguration class|hub cannot be reached"
        named = named or re.search(of_others, text)
        assert text and len(text) < 2_000 and named, text

    def describe(self, case: Case) -> str:  # noqa: D102
        return f"{case.door} of {case.seed}: {'; '.join(case.done)}"[:800]


def _classifier(adapter: Any) -> Any:
    model: Any2PointForPointCloudClassification = tiny_model(id2label=LABELS)
    return get_peft_model(model, adapter(model) if adapter is _lora else adapter())


def _lora(model: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules=encoder_linear_pattern(model), modules_to_save=trainable_module_names(model))


def _names_its_type(config: bytes | None) -> bool:
    try:
        return isinstance(json.loads(config or b"null").get("model_type"), str)
    except (ValueError, AttributeError, RecursionError):
        return False


def _changed_json(data: bytes, generator: np.random.Generator, file: Path) -> tuple[bytes, str]:
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return mutate(data, generator), "damaged"
    if not isinstance(told, (dict, list)):
        return mutate(data, generator), "damaged"
    kind = generator.random()
    if kind < 0.03:
        depth = int(generator.choice([1000, 200_000]))
        return b'{"a":' * depth, f"{depth} levels"
    if kind < 0.06:
        return json.dumps([told, 3, "x", None][int(generator.integers(4))]).encode(), "another kind"
    if kind < 0.12 and isinstance(told, dict):
        told |= {
            "auto_map": {name: "evil.Evil" for name in ("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer")},
            "custom_pipelines": {"point-cloud-classification": {"impl": "evil.Evil", "pt": [], "tf": []}},
            "trust_remote_code": True,
        }
        return json.dumps(told).encode(), "code beside it"
    told = deepcopy(told)
    places = list(_places(told))
    if not places:
        return data, "nothing"
    holder, key = places[int(generator.integers(len(places)))]
    # Of lists as long as vocabularies few entries matter.
    path = f"{key}"
    kind = generator.random()
    value: Any
    if kind < 0.08:
        del holder[key]
        return _dumped(told), f"{path} is missing"
    if key in ("target_modules", "exclude_modules", "rank_pattern", "modules_to_save", "layers_to_transform"):
        value = PATTERNS[int(generator.integers(len(PATTERNS)))]
        value = {value: 4} if key == "rank_pattern" else value
    elif key == "chat_template":
        value = TEMPLATES[int(generator.integers(len(TEMPLATES)))]
    elif kind < 0.65:
        value = NUMBERS[int(generator.integers(len(NUMBERS)))]
    elif kind < 0.75 and isinstance(holder[key], list):
        value = holder[key] * int(generator.choice([0, 2, 1000]))
    else:
        value = OTHERS[int(generator.integers(len(OTHERS)))]
    if isinstance(holder[key], list) and holder[key] and generator.random() < 0.5 and not isinstance(value, list):
        value = [*holder[key][:-1], value]
    holder[key] = value
    return _dumped(told), f"{path} is {value!r:.60}"


def _dumped(told: Any) -> bytes:
    return json.dumps(told).encode()


def _places(value: Any, depth: int = 0) -> Any:
    """All (holder, key) of a JSON value; of long ones the first few."""
    entries = list(value.items() if isinstance(value, dict) else enumerate(value))[:80]
    for key, inside in entries:
        yield value, key
        if isinstance(inside, (dict, list)) and inside and depth < 4:
            yield from _places(inside, depth + 1)


def _changed_weights(data: bytes, generator: np.random.Generator) -> tuple[bytes, str]:
    if len(data) < 8 or (length := struct.unpack("<Q", data[:8])[0]) > len(data) - 8:
        return mutate(data, generator), "damaged"
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError:
        return mutate(data, generator), "damaged"
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        return mutate(data, generator), "damaged"
    body = bytearray(data[8 + length :])
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return data, "nothing"
    name = names[int(generator.integers(len(names)))]
    entry = header[name]
    if {"dtype", "shape", "data_offsets"} - entry.keys():
        return mutate(data, generator), "damaged"
    kind, what = int(generator.integers(8)), ""
    if kind == 0:
        entry["dtype"], what = str(generator.choice(DTYPES)), "type"
    elif kind == 1:
        entry["shape"] = [int(generator.choice([0, 1, 2, 10**6, 2**62])) for _ in range(int(generator.integers(4)))]
        what = f"shape {entry['shape']}"
    elif kind == 2:
        start, stop = entry["data_offsets"]
        entry["data_offsets"] = [start, int(generator.choice([0, stop + 4, 2**40, start]))]
        what = "offsets"
    elif kind == 3:
        del header[name]
        what = "missing"
    elif kind == 4:
        header[f"{name}.twice"] = header.pop(name)
        what = "renamed"
    elif kind == 5:
        start, stop = entry["data_offsets"]
        if stop - start >= 4 and entry["dtype"] == "F32":
            body[start : start + 4] = np.float32(generator.choice([np.nan, np.inf, 1e38])).tobytes()
        what = "NaN"
    elif kind == 6:
        return data[: int(generator.integers(len(data)))], "cut"
    else:
        return struct.pack("<Q", int(generator.choice([0, 2**40, length + 100]))) + data[8:], "length of the header"
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(body), f"{name}: {what}"


TARGETS = [Models()]

"""Stored settings before a class reads them: fields, types, ranges, and the errors that name their place."""

import dataclasses
import json
import re

import pytest
import torch

from hf_any3d import PointNetConfig
from hf_any3d.modeling.config_checks import (
    check_choices,
    check_numbers,
    check_settings_files,
    check_stored_fields,
    read_settings,
    stored_settings,
)
from hf_any3d.modeling.file_stamps import file_stamp, sha256_of
from hf_any3d.modeling.hooks import Library, library, set_library
from tests.errors import raises


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *(
            ({name: 3}, f"{name}=3; expected an object")
            for name in ("auto_map", "custom_pipelines", "parts", "id2label")
        ),
        *(
            ({name: []}, f"{name}=[]; expected an object")
            for name in ("label2id", "quantization_config", "text_config")
        ),
        ({"encoder_config": "bert"}, "encoder_config='bert'; expected an object"),
        *(({name: 3}, f"{name}=3; expected a text") for name in ("model_type", "processor_class", "revision")),
        *(({name: []}, f"{name}=[]; expected a text") for name in ("feature_extractor_type", "tokenizer_class")),
        ({"base_model_name_or_path": {}}, "base_model_name_or_path={}; expected a text"),
        ({"model_max_length": "512"}, "model_max_length='512'; expected a number"),
        ({"architectures": "BertModel"}, "architectures='BertModel'; expected a list"),
        ({"architectures": ["A", 3]}, "architectures has 3; expected names of classes"),
        ({"dtype": 3}, "dtype=3; expected a type of torch, such as 'float32'"),
        ({"torch_dtype": "float99"}, "torch_dtype='float99'; expected a type of torch, such as 'float32'"),
        ({"dtype": "nn"}, "dtype='nn'; expected a type of torch"),
        ({"id2label": {"a": "b"}}, "id2label has {'a': 'b'}; expected numbers with names of classes"),
        ({"id2label": {"0": 5}}, "id2label has {'0': 5}; expected numbers with names of classes"),
        ({"auto_map": {"AutoConfig": 5}}, "auto_map has {'AutoConfig': 5}; expected names of classes"),
        ({"eos_token_id": "a"}, "eos_token_id='a'; expected numbers of tokens"),
        ({"suppress_tokens": [1, "b"]}, "suppress_tokens=[1, 'b']; expected numbers of tokens"),
        *(({name: 1.5}, f"{name}=1.5; expected numbers") for name in ("bos_token_id", "pad_token_id")),
        ({"begin_suppress_tokens": [2.5]}, "begin_suppress_tokens=[2.5]; expected numbers of tokens"),
    ],
)
def test_fields_of_libraries_have_their_types(content, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check_stored_fields(content)
    for name in ("config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name}: {message}")):
            check_settings_files(tmp_path)
        (tmp_path / name).unlink()
    check_settings_files(tmp_path)
    check_settings_files("me/nowhere")


def test_usual_fields_are_allowed(tmp_path):
    content = {
        "auto_map": {"AutoConfig": "a.B", "AutoModel": ["a.C", None]},
        "dtype": "auto",
        "torch_dtype": "bfloat16",
        "id2label": {"0": "chair", 1: "lamp"},
        "architectures": ["A"],
        "eos_token_id": [1, 2],
        "pad_token_id": None,
        "revision": None,
        "model_max_length": 10**30,
        "parts": {},
    }
    check_stored_fields(content)
    check_stored_fields(
        {"dtype": torch.float16, "torch_dtype": {"text": "float32"}, "encoder_config": PointNetConfig()}
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"num_points": 3}))
    assert read_settings(tmp_path / "preprocessor_config.json") == {"num_points": 3}


def test_files_of_settings_hold_objects(tmp_path):
    file = tmp_path / "config.json"
    for text, message in (
        ("[" * 5000, "not JSON ("),
        ("{", "not JSON ("),
        ('"a"', "holds 'a'; expected settings by name"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=re.escape(f"{file}: {message}")):
            read_settings(file)


def test_errors_of_stored_settings_name_their_place():
    class OwnError(ValueError):
        pass

    cases = [
        (ValueError("wrong"), ValueError, "here: wrong"),
        (ValueError("here: wrong"), ValueError, "here: wrong"),
        (OwnError("own"), OwnError, "own"),
        (KeyError("a\nb"), ValueError, "here: cannot be used (KeyError: 'a\\nb')"),
        (TypeError("a \n  b"), ValueError, "here: cannot be used (TypeError: a b)"),
        *((kind("left"), kind, "left") for kind in (OSError, ImportError, MemoryError)),
    ]
    for error, kind, message in cases:
        with pytest.raises(kind, match=f"^{re.escape(message)}$"), stored_settings("here"):
            raise error
    with raises(ValueError, naming="TypeError"), stored_settings():
        raise TypeError("a")
    with pytest.raises(ValueError, match="^wrong$"), stored_settings():
        raise ValueError("wrong")


@dataclasses.dataclass
class Settings:
    count: int = 3
    share: float = 0.5
    widths: "list[int] | tuple[int, ...]" = (1, 2)
    factors: "list[float] | None" = None
    parts: "list[list[int]] | None" = None
    holes: "list[int | None] | tuple[int | None, ...]" = (None, 2)
    free: "int | None" = None
    either: "int | list[int]" = 3
    flag: bool = True
    perhaps: "bool | None" = None
    name: str = "a"
    other: "str | None" = None
    nested: "dict | None" = None


RANGES = {"count": (2, 4), "share": (0, 1), "widths": (1, 5), "parts": (0, 9), "holes": (1, 5)}


@pytest.mark.parametrize(
    "settings",
    [
        {"count": 2},
        {"count": 4, "share": 1},
        {"share": 0},
        {"widths": [1, 5, 1]},
        {"widths": [1] * 1000},
        {"factors": [0.5, 2]},
        {"parts": [[0, 9], [3]]},
        {"holes": [None, 1, 5]},
        {"free": -(2**38)},
        {"free": 2**38},
        {"either": [1, 2]},
        {"flag": False, "perhaps": True, "other": "b", "nested": {"hidden_size": 3}},
    ],
    ids=str,
)
def test_numbers_in_their_ranges_are_allowed(settings):
    check_numbers(Settings(**settings), RANGES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 1}, "count=1; expected 2 to 4"),
        ({"count": 5}, "count=5; expected 2 to 4"),
        ({"count": 3.0}, "count=3.0; expected a whole number"),
        ({"count": True}, "count=True; expected a whole number"),
        ({"count": None}, "count=None; expected a whole number"),
        ({"count": 10**70}, "count=a number of 233 bits; expected 2 to 4"),
        ({"share": 1.5}, "share=1.5; expected 0 to 1"),
        ({"share": "a"}, "share='a'; expected a number"),
        ({"widths": [1, 6]}, "widths=6; expected 1 to 5"),
        ({"widths": 3}, "widths=3; expected a list of numbers"),
        ({"widths": [None]}, "widths=None; expected a whole number"),
        ({"widths": [1, [2]]}, "widths=[2]; expected a whole number"),
        ({"factors": [0.5, []]}, "factors=[]; expected a number"),
        ({"parts": [[1], 2]}, "parts=2; expected a list of numbers"),
        ({"parts": [[1], [[2]]]}, "parts=[2]; expected a whole number"),
        ({"factors": [float("inf")]}, "factors=inf; expected -274,877,906,944 to 274,877,906,944"),
        ({"factors": ["x" * 100]}, f"factors={repr('x' * 100)[:77]}...; expected a number"),
        ({"parts": [[0, 10]]}, "parts=10; expected 0 to 9"),
        ({"holes": [0]}, "holes=0; expected 1 to 5"),
        ({"free": 2**38 + 1}, "free=274877906945; expected -274,877,906,944 to 274,877,906,944"),
        ({"flag": 1}, "flag=1; expected True or False"),
        ({"perhaps": "a"}, "perhaps='a'; expected True or False"),
        ({"name": None}, "name=None; expected a text"),
        ({"other": 3}, "other=3; expected a text"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_other_numbers_are_named_with_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_numbers(Settings(**settings), RANGES)


def test_choices_are_checked():
    check_choices(Settings(), {"name": ("a", "b"), "free": (None, 1)})
    with raises(ValueError, naming="name='a'; expected one of 'c'"):
        check_choices(Settings(), {"free": (None,), "name": ("c", None)})


def test_a_stamp_changes_with_the_file(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    before = file_stamp(file)
    status = file.stat()
    assert before == (3, status.st_mtime_ns, status.st_ctime_ns)
    assert sha256_of(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(FileNotFoundError):
        file_stamp(tmp_path / "absent")


@pytest.fixture
def use():
    """Set another library for a test."""
    before = library()
    yield set_library
    set_library(before)


def test_configs_come_without_the_reference_to_their_library(use, tmp_path):
    use(Library(code_references=lambda stored, auto_classes: {auto_classes[0]: stored.__name__}))
    config = PointNetConfig(head_widths=[7])
    config.to_json_file(tmp_path / "config.json")
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["auto_map"] == {"AutoConfig": "PointNetConfig"} and not hasattr(config, "auto_map")
    again = PointNetConfig.from_json_file(tmp_path / "config.json")
    assert again.to_dict() == config.to_dict() and not hasattr(again, "auto_map")
    with pytest.raises(OSError):
        config.to_json_file(tmp_path / "absent" / "config.json")
    assert not hasattr(config, "auto_map")
    (tmp_path / "config.json").write_text(json.dumps(stored | {"head_widths": 3}))
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(tmp_path / 'config.json'))}: head_widths=3; expected a list"
    ):
        PointNetConfig.from_json_file(tmp_path / "config.json")
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}: head_widths=3; expected a list of numbers"):
        PointNetConfig.from_pretrained(tmp_path)
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "config.json").write_text(json.dumps(stored | {"architectures": "A"}))
    with raises(ValueError, naming="inner/config.json"):
        PointNetConfig.from_pretrained(tmp_path, subfolder="inner")
    with raises(ValueError, naming="architectures"):
        PointNetConfig.from_dict(stored | {"architectures": "A"})

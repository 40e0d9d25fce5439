"""Defaults and bounds of the options of all commands, as their help and the pages name them."""

import inspect
from typing import get_type_hints

import pytest

from hf_any3d.cli import app
from tests.cli.conftest import run

# Of each option its default, or its default, least and largest value; others have none of these, and switches are off.
OPTIONS = {
    "predict": {"top_k": (3, 1, None), "votes": (None, 1, None), "unknown": True, "batch_size": (None, 1, None)},
    "zero-shot": {"top_k": (3, 1, None), "batch_size": (None, 1, None)},
    "segment": {"max_points": (None, 1, None), "batch_size": (None, 1, None)},
    "detect": {"threshold": (0.5, 0, 1), "nms_iou": (0.25, 0, 1), "top_k": (None, 1, None)},
    "features": {"feature": "pooled", "batch_size": (None, 1, None)},
    "chat": {
        "max_new_tokens": (200, 1, None),
        "temperature": (0.2, 0, None),
        "top_p": (0.9, 0, 1),
        "repetition_penalty": (1.05, 0.1, None),
    },
    "reconstruct": {"threshold": 0.01, "batch_size": (None, 1, None)},
    "show": {"most": (24, 1, 60), "columns": (4, 1, None)},
    "convert": {
        "stage": (None, 2, 3),
        "num_groups": (None, 1, None),
        "group_size": (None, 1, None),
        "group_radius": (None, 0, None),
        "num_attention_heads": (None, 1, None),
        "num_points": (None, 1, None),
        "prompt_layer": (None, 0, None),
        "prompt_groups": (None, 1, None),
    },
    "train": {"batch_size": (None, 1, None), "points": (None, 1, None), "seed": (None, 0, None)},
    "export": {"format": "onnx"},
    "space": {"output": "space"},
    "demo": {"host": "127.0.0.1", "port": (7860, 1, 65535), "context": (400, 64, None)},
    "serve": {
        "host": "127.0.0.1",
        "port": (8000, 0, 65535),
        "max_batch": (8, 1, None),
        "max_wait": (5.0, 0, None),
        "max_queue": (64, 1, None),
        "max_megabytes": (64.0, 0.001, None),
        "max_points": (1000000, 1, None),
        "max_clouds": (16, 1, None),
        "max_seconds": (60.0, 0.01, None),
        "max_new_tokens": (1024, 1, None),
        "max_connections": (1000, 1, None),
        "drain_seconds": (30.0, 0, None),
        "journal_days": (7.0, 0, None),
    },
    "check-published": {"output": "published_checks.json", "clouds": (104, 13, None)},
    "evaluate classifier": {
        "voting": (None, 0, None),
        "batch_size": (None, 1, None),
        "max_samples": (None, 1, None),
        "seed": (0, 0, None),
    },
    "evaluate minigpt3d": {
        "output_dir": "minigpt3d-evaluation",
        "batch_size": (15, 1, None),
        "max_samples": (None, 1, None),
        "judge_url": "https://api.openai.com/v1",
        "judge_key_variable": "OPENAI_API_KEY",
        "metrics": True,
        "sentence_encoder": "sentence-transformers/all-mpnet-base-v2",
        "simcse": "princeton-nlp/sup-simcse-roberta-large",
        "seed": (0, 0, None),
    },
    "batch predict": {
        "top_k": (3, 1, None),
        "batch_size": (None, 1, None),
        "engine": "local",
        "workers": (None, 1, None),
    },
    "batch embed": {"feature": "pooled", "batch_size": (None, 1, None), "engine": "local", "workers": (None, 1, None)},
    "batch detect": {
        "threshold": (0.5, 0, 1),
        "nms_iou": (0.25, 0, 1),
        "top_k": (None, 1, None),
        "batch_size": (None, 1, None),
        "engine": "local",
        "workers": (None, 1, None),
    },
    "batch convert": {"to": "ply", "points": (None, 1, None), "engine": "local", "workers": (None, 1, None)},
    "data prepare": {"points": (None, 1, None)},
    "data from-depth": {"depth_scale": (None, 0, None), "depth_truncation": (None, 0, None)},
}


def commands(group, name=""):
    for one in group.registered_commands:
        yield f"{name} {one.name or one.callback.__name__.replace('_', '-')}".strip(), one.callback
    for one in group.registered_groups:
        yield from commands(one.typer_instance, f"{name} {one.name}".strip())


COMMANDS = dict(commands(app))


@pytest.mark.parametrize("name", COMMANDS)
def test_options_have_the_stored_defaults_and_bounds(name):
    hints, found = get_type_hints(COMMANDS[name], include_extras=True), {}
    for option in inspect.signature(COMMANDS[name]).parameters.values():
        about = getattr(hints[option.name], "__metadata__", (None,))[0]
        default = None if option.default is inspect.Parameter.empty else option.default
        default = default if isinstance(default, (int, float)) or default is None else str(default)
        bounds = (getattr(about, "min", None), getattr(about, "max", None))
        if bounds != (None, None):
            found[option.name] = (default, *bounds)
        elif default not in (None, False):
            found[option.name] = default
    assert found == OPTIONS.get(name, {})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_opens_a_name_accepts_licenses(name):
    words = {"model", "encoder", "names"} & set(inspect.signature(COMMANDS[name]).parameters)
    assert ("--accept-license" in run(*name.split(), "--help").out) is bool(words)


def test_every_stored_command_is_still_there():
    assert set(OPTIONS) <= set(COMMANDS)

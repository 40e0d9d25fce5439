"""Errors of transformers and PEFT about names that are none, and about models that are not there, stay as they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What it is called with prints the type and text of each error. Auto classes of this package are left out.
PROGRAM = """
import json, pathlib, sys
import numpy, peft, transformers
if sys.argv[1] == "True":
    import hf_any3d

NAMES = [None, 3, 0.5, True, b"bert", b"\\xff", bytearray(b"x"), ["a"], [], ("a",), {}, {1}, int, numpy.zeros(2)]
NAMES += ["", " ", ".", "./gone", "gone/model", "outputs/run", "owner/gone", "a/b/c", "a--b..c", "a\\0b", "x" * 300]
NAMES += ["file", "empty", pathlib.Path("gone"), pathlib.Path("empty"), "~/gone", "https://example.invalid/x"]
FURTHER = [{"subfolder": "x"}, {"subfolder": 3}, {"revision": "v1"}, {"revision": 3}, {"local_files_only": True}]


def answer(open_model, *args, **kwargs):
    try:
        open_model(*args, **kwargs)
    except BaseException as error:
        return [type(error).__name__, str(error)]
    return ["no error", ""]


def opening(module, name):
    # Some classes need a package that is not installed.
    try:
        return getattr(module, name).from_pretrained
    except Exception:
        return None


classes = {}
for module in (transformers, peft):
    classes |= {name: opening(module, name) for name in dir(module) if name.startswith("Auto")}
config = transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
bert = transformers.BertModel(config)
classes["PeftModel"] = lambda *args, **kwargs: peft.PeftModel.from_pretrained(bert, *args, **kwargs)
classes["load_adapter"] = lambda *args, subfolder="", **kwargs: bert.load_adapter(
    *args, adapter_kwargs={"subfolder": subfolder}, **kwargs
)
found = {}
for name, open_model in classes.items():
    if open_model is not None and "PointCloud" not in name:
        for value in NAMES:
            found[f"{name}({value!r})"] = answer(open_model, value)
        for further in FURTHER:
            for value in (None, 3, "owner/gone", "empty"):
                found[f"{name}({value!r}, {further})"] = answer(open_model, value, **further)
for task in (None, "text-classification", 3):
    for value in NAMES:
        found[f"pipeline({task!r}, {value!r})"] = answer(transformers.pipeline, task, model=value)
print(json.dumps(found))
"""


def errors(folder: Path, is_imported: bool) -> dict[str, list[str]]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "critical", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(is_imported)]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_errors_about_names_are_those_of_the_libraries(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with_import, without = (errors(tmp_path, is_imported) for is_imported in (True, False))
    assert len(without) > 2500 and with_import.keys() == without.keys()
    changed = {call: (with_import[call], own) for call, own in without.items() if with_import[call] != own}
    assert not changed, (len(changed), list(changed.items())[:9])

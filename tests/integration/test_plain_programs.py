"""Nobody can tell from a plain program of other libraries whether this package was imported."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_any3d.integration.registration import ENCODERS, LANGUAGE_MODELS, MODELS
from hf_any3d.registry import TASKS

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("plain_program.py")
# What registration adds to lists of what can be opened, of which errors tell.
REGISTERED = {kind for kind in (*MODELS, *ENCODERS, *(config for config, *_ in LANGUAGE_MODELS))}
LISTED = {*TASKS, *(kind.__name__ for kind in REGISTERED), *(kind.model_type for kind in REGISTERED)}


def run(folder: Path, has_import: bool) -> tuple[dict, list[str]]:
    """Return what the program has found, and the lines of its errors without times and numbers of processes."""
    folder.mkdir()
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", "HF_HOME": str(folder)}
    words = [sys.executable, str(PROGRAM), str(has_import), "found.json"]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [re.sub(r"\d+", "", line) for line in done.stderr.splitlines() if not line.startswith("{")]
    return json.loads((folder / "found.json").read_text()), sorted(lines)


def without_lists(found: object) -> str:
    """Return an answer as text without the names that registration adds to lists."""
    text = json.dumps(found)
    for name in sorted(LISTED, key=len, reverse=True):
        text = re.sub(rf", '?{re.escape(name)}\b'?|\b'?{re.escape(name)}'?, ", "", text)
    return text


@pytest.mark.slow
def test_plain_programs_answer_as_without_the_import(tmp_path):
    (theirs, lines), (ours, our_lines) = (run(tmp_path / name, name == "with") for name in ("without", "with"))
    assert our_lines == lines
    assert theirs.keys() == ours.keys() and len(theirs) > 4000
    assert sum("(" not in name for name in theirs) > 900, "calls that are no errors about names"
    changed = {name: (own, ours[name]) for name, own in theirs.items() if own != ours[name]}
    # An error that lists what can be opened lists what is registered; nothing else differs.
    beyond = {name: both for name, both in changed.items() if without_lists(both[0]) != without_lists(both[1])}
    assert not beyond, (len(beyond), list(beyond.items())[:9])
    print(f"{len(theirs)} calls, {len(changed)} of them with a list of what is registered")


def test_the_import_sets_no_variable_and_wraps_only_what_opens_by_names(tmp_path):
    program = """
import os, inspect, torch, transformers, transformers.modeling_utils
before, names = dict(os.environ), set(vars(transformers)) | set(dir(transformers))
import hf_any3d
assert dict(os.environ) == before
import datasets, peft, transformers.trainer
added = {name for name in vars(transformers) if type(getattr(transformers, name)).__name__ != "module"} - names
assert not added, added
from hf_any3d.integration.patches import PATCHES
print(sorted(patch.targets[0] for patch in PATCHES))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(
        [
            "peft.auto:_BaseAutoPeftModel.from_pretrained",
            "transformers.pipelines:find_adapter_config_file",
            "transformers.utils.hub:cached_files",
        ]
    )


WAYS_TO_PEFT = {
    "a module of methods": "import hf_any3d.tuners.targets",
    "Trainer": "import hf_any3d, sys; assert 'peft' not in sys.modules; from transformers import Trainer",
}


def test_peft_knows_our_methods_whoever_imports_it():
    program = f"""
import os, sys, torch, transformers.pipelines
check = '''
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, AutoPeftModel, PeftModel, PeftType
import hf_any3d
assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.GUIDED_ADAPTER] is hf_any3d.GuidedAdapterConfig
assert AutoPeftModel.from_pretrained.__func__._patched_by_hf_any3d
trainer = sys.modules.get("transformers.trainer")
built = [PeftModel.__init__] + ([trainer.Trainer.compute_loss] if trainer else [])
assert not any(hasattr(function, "_patched_by_hf_any3d") for function in built)
hf_any3d.PointNetModel(hf_any3d.PointNetConfig(hidden_sizes=[8], head_widths=[8]))
built = [PeftModel.__init__] + ([trainer.Trainer.compute_loss] if trainer else [])
assert all(function._patched_by_hf_any3d for function in built)
'''
for way, lines in {WAYS_TO_PEFT!r}.items():
    if os.fork():
        assert os.wait()[1] == 0, way
    else:  # what a process has imported is not forgotten, so each way has its own
        exec(lines + check)
        os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

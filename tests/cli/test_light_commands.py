"""Commands in new processes: what they import, and what runs beside a program of the same name."""

import subprocess
import sys
from pathlib import Path

import hf_any3d
from tests.cli.conftest import FILES, run
from tests.extensions import HAS_SURVEY

MODEL = str(Path(hf_any3d.__file__).parent / "default_model")


def test_help_errors_and_facts_about_a_known_model_come_without_heavy_libraries(models, tmp_path):
    known = run("info", models("classifier"), "--json")
    chair = str(FILES / "chair.ply")
    lines = ["predict {chair}", "data example new.las"]
    if HAS_SURVEY:
        from hf_any3d_survey.about import SCENE_MODEL

        lines += ["inventory new.las", f"segment new.las --model {SCENE_MODEL}"]
    program = f"""
import sys
import hf_any3d_command
from typer.testing import CliRunner
from hf_any3d.cli import app
lines = [
    ["--help"], ["-h"], ["predict", "-h"], ["train", "--help"], ["data", "convert", "-h"], ["predcit"],
    ["info", "outputs/typo"], ["predict", {chair!r}, "--model", "outputs/typo"],
    ["predict", {chair!r}, "--model", {models("chat")!r}], ["train", "shapess"],
    ["show", "gone.ply"], ["push", "outputs/typo", "me/model"], ["data", "check", {chair!r}],
    ["predict", "gone.ply", "--output", "a.csv", "--resume"], ["convert", "gone.pth", "--output", "out"],
    ["chat", {MODEL!r}, {chair!r}], ["info", {models("classifier")!r}, "--json"],
]
for words in lines:
    result = CliRunner().invoke(app, words)
    heavy = {{"torch", "transformers", "datasets", "peft", "pandas"}} & set(sys.modules)
    assert not heavy, (words, heavy)
    assert isinstance(result.exception, SystemExit) or result.exception is None, (words, result.exception)
print(result.stdout, end="")
for words in {[line.format(chair=chair) for line in lines]!r}:
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 0 and "transformers.modeling_utils" not in sys.modules, (words, result.output)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == known.out, done.stderr


def test_a_program_of_the_same_name_and_the_package_run(tmp_path):
    """What runs is not told by names on the command line."""
    file = tmp_path / "hf-any3d.py"
    file.write_text("""
import runpy
import sys
import hf_any3d
from transformers import AutoConfig
assert "segment" in hf_any3d.__all__ and "hf_any3d.array_segmentation" not in sys.modules
assert hf_any3d.segment and "hf_any3d.array_segmentation" in sys.modules
print(AutoConfig.for_model("act3d"))
sys.argv = ["hf_any3d", "--help"]
runpy.run_module("hf_any3d", run_name="__main__")
""")
    done = subprocess.run([sys.executable, file, "-m", "hf_any3d"], capture_output=True, text=True)
    assert done.returncode == 0 and "ActConfig" in done.stdout and "zero-shot" in done.stdout, done.stderr

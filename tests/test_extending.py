"""The tables "To add something" of docs/architecture.md, tried in a copy of the source: these files and no others."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# How to add a model, how to add a task, and how to do both without a clone.
PAGE = re.split(r"\n# (?:Add a task|Without a clone)\n", (ROOT / "docs/extending.md").read_text(encoding="utf-8"))
# A training of one step.
SMALL = ("--points", 4, "--batch-size", 2, "--max_steps", 1, "--use_cpu")


class Copy:
    """A copy of the source with all additions, and what their programs print, all in one process.

    Args:
        folder: Where the copy is made.
    """

    def __init__(self, folder: Path):
        for name in ("hf_any3d", "modeling", "conversions"):
            # With its caches of compiled files.
            shutil.copytree(ROOT / name, folder / name, symlinks=True)
        (folder / "examples").symlink_to(ROOT / "examples")  # which has the assets
        (folder / "tests").symlink_to(ROOT / "tests")
        self.folder = folder
        programs = {name: add(folder) for name, add in ADDITIONS.items()}
        done = self.run(f"""
import contextlib, io, json, traceback
from typer.testing import CliRunner
from hf_any3d.cli import app
def command(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, f"{{words}}: {{done.output}}"
    return done.stdout
results = {{}}
for name, program in {programs!r}.items():
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(program, {{"__name__": "__main__", "command": command}})
    except Exception:
        results[name] = [None, traceback.format_exc()]
    else:
        results[name] = [printed.getvalue(), ""]
open("results.json", "w").write(json.dumps(results))
""")
        assert done.returncode == 0, done.stderr
        self.results = json.loads((folder / "results.json").read_text())

    def run(self, program: str) -> subprocess.CompletedProcess:
        """Run a program on the copy, in a process of its own."""
        # The installation of the checkout would come first, where it is a finder.
        start = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in f'{f}{type(f)}'.lower()]\n"
        program += f"import hf_any3d; assert hf_any3d.__file__.startswith({str(self.folder)!r})\n"
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", start + program]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)

    def printed(self, addition: str) -> str:
        """Return what the program of an addition printed."""
        printed, error = self.results[addition]
        assert printed is not None, error
        return printed


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"))


def add_line(file: Path, after: str, line: str) -> None:
    """Insert a line after the first one that contains a text."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    place = next(number for number, text in enumerate(lines) if after in text)
    lines.insert(place + 1, line + "\n")
    file.write_text("".join(lines), encoding="utf-8")


def replace(file: Path, old: str, new: str) -> None:
    """Replace a text that a file contains once."""
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    file.write_text(text.replace(old, new), encoding="utf-8")


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Return the files of a page: their names and what is in them."""
    return re.findall(r"`([\w./]+)`:\n\n```python\n# needs (?:a|your own) [^\n]*\n(.*?)```$", page, flags=re.M | re.S)


def follow(folder: Path, page: str, place: str) -> list[str]:
    """Write the files of a page, and its line into the registry at a place; return the names of the files."""
    *files, (registry, line) = blocks_of(page)
    for name, text in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    assert line.count("\n") == 1
    add_line(folder / registry, place, line.rstrip())
    return [name for name, _ in files]


def add_file_format(folder: Path) -> str:
    (folder / "hf_any3d/data/files/corners.py").write_text(
        "import numpy as np\n"
        "from hf_any3d.data.files.point_cloud import PointCloudData\n"
        "def read(source):\n"
        "    return PointCloudData(np.frombuffer(source.data, '<f4').reshape(-1, 3))\n"
    )
    add_line(folder / "hf_any3d/registry.py", "FORMATS: dict", '    "corners": "corners",')
    (folder / "cube.corners").write_bytes(bytes(range(24)) * 2)
    program = """
import hf_any3d, json
print(len(hf_any3d.read_point_cloud("cube.corners")))
print(tuple(hf_any3d.PointCloudProcessor(num_points=2)("cube.corners")["points"][0].shape))
print(len(json.loads(command("predict", "cube.corners", "--no-unknown", "--json"))[0]["predictions"]))
command("data", "convert", "cube.corners", "--output", "ply")
print(len(hf_any3d.read_point_cloud("ply/cube.corners.ply")))
"""
    return program


def add_dataset(folder: Path) -> str:
    (folder / "hf_any3d/data/catalog/dice.py").write_text(
        "from datasets import ClassLabel, Dataset, DatasetDict\n"
        "def load(data_dir=None, **options):\n"
        "    points = [[[0.0, i, n] for i in range(4)] for n in range(6)]\n"
        "    rows = Dataset.from_dict({'points': points, 'label': [0, 1] * 3})\n"
        "    rows = rows.cast_column('label', ClassLabel(names=['even', 'odd']))\n"
        "    return DatasetDict(train=rows, test=rows)\n"
    )
    (folder / "hf_any3d/data/catalog/halves.py").write_text(
        "from datasets import ClassLabel, Dataset, DatasetDict, List\n"
        "def load(data_dir=None, **options):\n"
        "    points = [[[0.0, 0.1 * i, (-1.0) ** i * n] for i in range(8)] for n in range(1, 7)]\n"
        "    rows = Dataset.from_dict({'points': points, 'labels': [[0, 1] * 4] * 6})\n"
        "    rows = rows.cast_column('labels', List(ClassLabel(names=['up', 'down'])))\n"
        "    return DatasetDict(train=rows, test=rows)\n"
    )
    registry = folder / "hf_any3d/registry.py"
    add_line(registry, "DATASETS: dict", '    "dice": LABELED_CLOUDS,')
    add_line(registry, "DATASETS: dict", '    "halves": LABELED_POINTS,')
    program = f"""
import hf_any3d, json
rows = hf_any3d.load_point_dataset('dice', split='train')
print(len(rows), rows[0]['points'].shape, rows.features['label'].names)
small = {SMALL!r}
command("train", "dice", "--model_type", "pointnet", *small, "--output", "die")
print(json.loads(command("info", "die", "--json"))["labels"])
print(list(json.loads(command("evaluate", "die", "--dataset", "dice", "--json", "--cpu"))["metrics"]))
size = json.dumps({{"num_groups": 4, "group_size": 2, "hidden_size": 12, "num_hidden_layers": 3,
                   "num_attention_heads": 2, "segmentation_layers": [0, 1, 2]}})
command("train", "halves", "--model_type", "act3d", "--model_config", size, *small, "--output", "half")
print(json.loads(command("info", "half", "--json"))["class"])
print(list(json.loads(command("evaluate", "half", "--dataset", "halves", "--json", "--cpu"))["metrics"]))
"""
    return program


def add_encoder_family(folder: Path) -> str:
    file = folder / "modeling/encoders/families/vision.py"
    file.write_text(
        file.read_text(encoding="utf-8") + "\n\nregister_family(\n"
        "    EncoderFamily(name='Own', model_types=('own_vit',), tower='vision', layers='layers', branch='mlp',\n"
        "        positions=lambda model: plane(model.embeddings.position_embeddings, 1, 4), final_norm='layernorm',\n"
        "        class_token=class_token)\n)\n",
        encoding="utf-8",
    )
    program = (
        f"SMALL = {SMALL!r}"
        + """
import hf_any3d, json, torch
from transformers import AutoConfig, AutoModel, ViTConfig, ViTModel
class OwnConfig(ViTConfig): model_type = "own_vit"
class OwnModel(ViTModel): config_class = OwnConfig
AutoConfig.register("own_vit", OwnConfig); AutoModel.register(OwnConfig, OwnModel)
sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
OwnModel(OwnConfig(image_size=32, patch_size=8, **sizes)).save_pretrained("own")
model = hf_any3d.Any2PointModel.from_encoder_pretrained("own", num_tokens=16).eval()
print(tuple(model(torch.rand(2, 64, 3)).pooler_output.shape))
command("train", "shapes", "--encoder", "own", "--num_tokens", 4, "--tokenizer_neighbors", 4, "--max_train_samples", 8,
        "--max_eval_samples", 4, "--peft", "scale_outputs", *SMALL, "--output", "own_shapes")
print(json.loads(command("info", "own_shapes", "--json"))["adapter"])
"""
    )
    return program


def add_head(folder: Path) -> str:
    name = "Any2PointForPointCloudRegression"
    file = folder / "modeling/any2point/modeling_any2point.py"
    file.write_text(
        file.read_text(encoding="utf-8")
        + f"""

class {name}(Any2PointForPointCloudClassification):
    def __init__(self, config, encoder=None):
        config.problem_type = "regression"
        super().__init__(config, encoder)
""",
        encoding="utf-8",
    )
    task = f"""    "{name}": replace(
        _CLASSIFICATION,
        task_name="Point cloud regression",
        intro="Estimates numbers from 3D point clouds.",
        use='estimate("chair.ply", top_k=None)',
        verb="estimate",
        metrics={{"mse": "Mean squared error"}},
        has_classes=False,
        factors={{"mse": 1.0}},
    ),"""
    add_line(folder / "hf_any3d/model_card/tasks.py", "TASKS = {", task)
    imported = folder / "modeling/any2point/__init__.py"
    add_line(imported, "modeling_any2point import (", f"    {name},")
    add_line(imported, "__all__ = [", f'    "{name}",')
    heads = '"point-cloud-classification": ("Any2PointForPointCloudClassification",'
    replace(folder / "modeling/any2point/about.py", f"{heads})", f'{heads} "{name}")')
    program = f"""
import hf_any3d, json, torch
from transformers import ViTConfig, ViTModel, pipeline
sizes = {{"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}}
ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained("vit")
model = hf_any3d.{name}.from_encoder_pretrained("vit", num_tokens=16, num_labels=3)
assert model(points=torch.rand(2, 64, 3), labels=torch.rand(2, 3)).loss.ndim == 0
model.save_pretrained("numbers")
hf_any3d.PointCloudProcessor(num_points=64).save_pretrained("numbers")
assert "Estimates numbers" in open("numbers/README.md").read()
opened = hf_any3d.AutoModelForPointCloudClassification.from_pretrained("numbers")
estimate = pipeline("point-cloud-classification", model="numbers")
print(type(opened).__name__, len(estimate(torch.rand(64, 3), top_k=None)))
print(len(json.loads(command("predict", hf_any3d.example_file(), "--model", "numbers", "--json"))))
print(json.loads(command("info", "numbers", "--json"))["class"])
"""
    return program


def add_model(folder: Path) -> str:
    files = follow(folder, PAGE[0], "MODEL_FOLDERS = (")
    assert [Path(name).parent.as_posix() for name in files] == [*["modeling/pospool"] * 4, "conversions"]
    return f"""
import hf_any3d, json, torch
from transformers import AutoModel, pipeline
size = {{"hidden_sizes": [8, 6], "num_neighbors": 2, "head_widths": [4]}}
command("train", "dice", "--model_type", "pospool", "--model_config", json.dumps(size), *{SMALL!r}, "--output", "pool")
print(list(json.loads(command("evaluate", "pool", "--dataset", "dice", "--json", "--cpu"))["metrics"]))
classify = pipeline("point-cloud-classification", model="pool")
print(type(classify.model).__name__, len(classify(torch.rand(4, 3), top_k=None)))
print(len(json.loads(command("predict", hf_any3d.example_file(), "--model", "pool", "--no-unknown", "--json"))))
facts = json.loads(command("info", "pool", "--json"))
print(facts["class"], facts["total parameters"] == sum(p.numel() for p in classify.model.parameters()))
state = classify.model.pospool.state_dict()
torch.save({{f"pools.{{name}}": tensor for name, tensor in state.items()}}, "pools.pth")
command("convert", "pools.pth", "--output", "converted")
for opened in (AutoModel.from_pretrained("converted"), hf_any3d.open_published("pools.pth", cache_dir="cache")):
    print(type(opened).__name__, all(torch.equal(opened.state_dict()[name], state[name]) for name in state))
card = open("converted/README.md").read()
print("A network of PosPool layers reads" in card, "arxiv.org/abs/2007.01294" in card)
from hf_any3d.conversions import convert_pospool
from hf_any3d.hub.names import check_name
check_name("authors/pospool")  # a published name, which has a cache of its own
print("pospool (a small network, trained from scratch)" in " ".join(command("train", "--help-all").split()))
"""


def add_task(folder: Path) -> str:
    files = follow(folder, PAGE[1], "TASK_FOLDERS = (")
    assert [Path(name).parent.as_posix() for name in files] == ["hf_any3d/tasks/extent"] * 5
    shutil.copy(ROOT / "examples/data/chair.ply", folder / "chair.ply")
    return """
import json
import hf_any3d, pyarrow.parquet
from fastapi.testclient import TestClient
from transformers import pipeline
from hf_any3d import many_files
from hf_any3d.data.example_shapes import ExampleShapes
from hf_any3d.demo.task_pages import TaskAnswers, TaskPage
from hf_any3d.integration.registration import task_of
from hf_any3d.pipelines import default_model
from hf_any3d.serving.app import create_app
from hf_any3d.serving.service import Service
model = default_model()
extent = pipeline("point-cloud-extent", model=model)
asked = extent("chair.ply", share=0.9)
print(sorted(asked), asked["height"] < extent("chair.ply")["height"])
found = json.loads(command("extent", "chair.ply", "--share", 0.9, "--json"))[0]["extent"]
print("command", found == asked)
command("extent", "chair.ply", "--share", 0.9, "--output", "extent.parquet", "--workers", 1)
print("run", pyarrow.parquet.read_table("extent.parquet")["extent"][0].as_py() == asked)
clouds = many_files.ask(many_files.read_point_clouds("chair.ply"), "point-cloud-extent", model, share=0.9)
print("rows", next(clouds.open()(clouds.files))["extent"] == asked)
classify = pipeline("point-cloud-classification", model=model)
service = Service("own", task_of(model), classify)
with TestClient(create_app(service)) as client:
    answer = client.post("/v1/extent", files={"file": open("chair.ply", "rb")}, data={"share": "0.9"})
    refused = client.post("/v1/extent", files={"file": open("chair.ply", "rb")}, data={"share": "0.1"})
print("service", answer.json()["answers"][0]["extent"] == asked, refused.status_code)
shapes = ExampleShapes()
answers = TaskAnswers("point-cloud-extent", extent, shapes)
TaskPage("own", shapes, answers).build()
shown = answers.ask(hf_any3d.read_point_cloud("chair.ply"), share=0.9)
print("demo", f"{asked['height']:.2f}" in shown.note)
"""


def add_skeleton(folder: Path) -> str:
    """Add the skeleton as it is, and one that becomes Deep Sets (arXiv 1703.06114): linear layers and nothing else."""
    for name in ("my_model", "deep_sets"):
        # In the copy: the command writes where it is run.
        subprocess.run([sys.executable, "-m", "tests.skeleton", name], cwd=folder, check=True, capture_output=True)
    modeling = folder / "modeling/deep_sets/modeling_deep_sets.py"
    replace(modeling, "        self.norm = nn.LayerNorm(outputs)\n", "")
    replace(modeling, "torch.relu(self.norm(self.linear(features)))", "torch.relu(self.linear(features))")
    return "from hf_any3d.registry import MODEL_TYPES; print('my_model' in MODEL_TYPES, 'deep_sets' in MODEL_TYPES)"


def add_peft_method(folder: Path) -> str:
    own = folder / "hf_any3d/tuners/scale_outputs"
    own.mkdir()
    (own / "config.py").write_text(
        "from dataclasses import dataclass\n"
        "from hf_any3d.tuners.tuners_utils import EncoderLayersConfig\n"
        "@dataclass\n"
        "class ScaleOutputsConfig(EncoderLayersConfig):\n"
        "    method = 'SCALE_OUTPUTS'\n"
    )
    (own / "layer.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from hf_any3d.tuners.tuners_utils import WrappedModule\n"
        "class ScaleOutputsLayer(WrappedModule):\n"
        "    adapter_layer_names = ('scale_outputs_factor',)\n"
        "    def __init__(self, base_layer):\n"
        "        super().__init__(base_layer)\n"
        "        self.scale_outputs_factor = nn.ParameterDict()\n"
        "    def build(self, adapter_name, config):\n"
        "        self.scale_outputs_factor[adapter_name] = nn.Parameter(torch.ones(1))\n"
        "    def forward(self, *args, **kwargs):\n"
        "        output = self.base_layer(*args, **kwargs)\n"
        "        for name in self._running_adapters():\n"
        "            factor = self.scale_outputs_factor[name]\n"
        "            scaled = output[0] if isinstance(output, tuple) else output\n"
        "            output = (scaled * factor, *output[1:]) if isinstance(output, tuple) else scaled * factor\n"
        "        return output\n"
    )
    (own / "model.py").write_text(
        "from hf_any3d.tuners.scale_outputs.layer import ScaleOutputsLayer\n"
        "from hf_any3d.tuners.tuners_utils import EncoderTuner\n"
        "class ScaleOutputsModel(EncoderTuner):\n"
        "    prefix = 'scale_outputs_'\n"
        "    tuner_layer_cls = ScaleOutputsLayer\n"
    )
    (own / "__init__.py").write_text(
        "from hf_any3d.tuners.scale_outputs.config import ScaleOutputsConfig\n"
        "from hf_any3d.tuners.scale_outputs.model import ScaleOutputsModel\n"
        "from hf_any3d.tuners.tuners_utils import register_method\n"
        "register_method(ScaleOutputsConfig, ScaleOutputsModel)\n"
    )
    line = "from hf_any3d.tuners.scale_outputs import ScaleOutputsConfig"
    add_line(folder / "hf_any3d/tuners/__init__.py", "tuners.prompt_tokens import", line)
    return """
from hf_any3d.training.peft_methods import peft_methods
print("scale_outputs" in peft_methods())
"""


ADDITIONS = {
    "file_format": add_file_format,
    "dataset": add_dataset,
    "encoder_family": add_encoder_family,
    "head": add_head,
    "model": add_model,
    "task": add_task,
    "skeleton": add_skeleton,
    "peft_method": add_peft_method,
}
"""Each adds something to a copy of the source and returns a program that uses it."""


@pytest.mark.slow
def test_a_file_format_is_a_file_and_a_line(copy):
    assert copy.printed("file_format").split("\n")[:4] == ["4", "(2, 3)", "3", "4"]


@pytest.mark.slow
def test_a_dataset_is_a_file_and_a_line(copy):
    assert copy.printed("dataset").split("\n")[:5] == [
        "6 (4, 3) ['even', 'odd']",
        "['even', 'odd']",
        "['test']",
        "ActForSemanticSegmentation",
        "['test']",
    ]


@pytest.mark.slow
def test_an_encoder_family_is_a_call(copy):
    assert copy.printed("encoder_family").split() == ["(2,", "72)", "scale_outputs"]


def test_a_head_is_in_three_files_and_the_text_of_its_task(copy):
    name = "Any2PointForPointCloudRegression"
    assert copy.printed("head").split("\n")[:3] == [f"{name} 3", "1", name]


def test_a_model_with_a_converter_and_a_released_file_is_its_files_and_a_line(copy):
    name = "PosPoolForPointCloudClassification"
    assert copy.printed("model").split("\n")[:8] == [
        "['test']",
        f"{name} 2",
        "1",
        f"{name} True",
        *["PosPoolModel True"] * 2,
        "True True",
        "True",
    ]


def test_a_task_is_a_folder_and_a_line_and_answers_through_all_doors(copy):
    assert copy.printed("task").split("\n")[:6] == [
        "['height', 'sides'] True",
        "command True",
        "run True",
        "rows True",
        "service True 400",
        "demo True",
    ]


def test_the_skeleton_is_registered_by_its_command(copy):
    assert copy.printed("skeleton").split() == ["True", "True"]


def test_a_name_that_is_there_or_is_none_is_refused_in_a_line(copy):
    for name, told in (("my_model", "my_model"), ("My Model", "no name of a model")):
        words = [sys.executable, "-m", "tests.skeleton", name]
        done = subprocess.run(words, cwd=copy.folder, capture_output=True, text=True)
        assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr


def test_a_new_model_does_what_the_common_suites_ask_of_all(copy):
    names = ("models", "gradients", "problem_types", "compiled_models", "export", "quantization")
    suites = [f"tests/common/test_{name}.py" for name in names]
    words = [*suites, "-k", "PosPool or MyModel or DeepSets", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    # A head with other base classes needs a line in tests/common/models.py.
    replace(copy.folder / "modeling/any2point/about.py", ' "Any2PointForPointCloudRegression"', "")
    whole = "import os, pytest\nos.environ['HF_ANY3D_ALL_PAIRS'] = '1'\n"
    done = copy.run(f"{whole}assert pytest.main({words}) == 0\n")
    assert done.returncode == 0, f"{done.stdout[-5000:]}{done.stderr[-2000:]}"
    assert done.stdout.count(".") > 180


def test_a_peft_method_is_a_folder_and_an_import(copy):
    assert copy.printed("peft_method").strip() == "True"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Path:
    """A folder with the package `mine` of the page, installed as pip would: its modules beside its entry point."""
    folder = tmp_path_factory.mktemp("stranger")
    moved = {"modeling/pospool": "mine/pospool", "hf_any3d/tasks/extent": "mine/extent"}
    modules = {"hf_any3d.modeling.pospool": "mine.pospool", "hf_any3d.tasks.extent": "mine.extent"}
    files = dict(blocks_of(PAGE[2]))
    for name, text in [*blocks_of(PAGE[0]), *blocks_of(PAGE[1])]:
        own = "mine/convert.py"
        if name != "conversions/pospool.py":
            own = f"{moved.get(Path(name).parent.as_posix())}/{Path(name).name}"
        for old, new in modules.items():
            text = text.replace(old, new)
        # The page has a record of its own.
        if own.startswith("mine/"):
            files.setdefault(own, text)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (entry,) = re.findall(r'^mine = "(.+)"$', PAGE[2], flags=re.M)
    (folder / "mine-1.0.dist-info").mkdir()
    (folder / "mine-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (folder / "mine-1.0.dist-info/entry_points.txt").write_text(f"[hf_any3d.extensions]\nmine = {entry}\n")
    return folder


def run_beside(folder: Path, program: str) -> list[str]:
    """Run a program where a folder of packages is installed beside this one; returns the lines that it printed."""
    places = [str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_package_beside_this_one_brings_whatever_this_one_has(stranger):
    shutil.copy(ROOT / "examples/data/chair.ply", stranger)
    (stranger / "cube.corners").write_bytes(bytes(range(24)) * 2)
    program = f"""
import json
from typer.testing import CliRunner
from hf_any3d.cli import app
def command(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (words, done.output)
    return done.stdout
print(command("count", "chair.ply").strip())
(row,) = json.loads(command("extent", "chair.ply", "--share", "0.9", "--json"))
print(sorted(row["extent"]))
size = {{"hidden_sizes": [8, 6], "num_neighbors": 2, "head_widths": [4]}}
command("train", "shapes", "--model_type", "pospool", "--model_config", json.dumps(size), *{SMALL!r},
        "--max_train_samples", 8, "--max_eval_samples", 4, "--output", "pool")
print(json.loads(command("info", "pool", "--json"))["class"])
import hf_any3d, torch
from transformers import AutoModel, pipeline
print(type(AutoModel.from_pretrained("pool")).__name__, hf_any3d.PosPoolModel.__module__)
classify = pipeline("point-cloud-classification", model="pool")
print(len(classify(torch.rand(4, 3), top_k=2)))
from hf_any3d.training.peft_methods import peft_methods
print("scale_outputs" in peft_methods())
print(len(hf_any3d.read_point_cloud("cube.corners")))
print(json.loads(command("data", "check", "cube.corners", "--json"))[0]["points"])
small = ["--model_type", "pospool", "--model_config", json.dumps(size), *{SMALL!r}]
command("train", "dice", *small, "--output", "of_dice")
of_training = json.load(open("of_dice/metrics.json"))["metrics"]["test"]
evaluated = json.loads(command("evaluate", "of_dice", "--dataset", "dice", "--json", "--cpu"))["metrics"]["test"]
print(sorted(evaluated), evaluated["top_two"], "top_two" in of_training)
state = {{f"pools.{{name}}": tensor for name, tensor in AutoModel.from_pretrained("pool").state_dict().items()}}
torch.save(state, "pools.pth")
command("convert", "pools.pth", "--output", "converted")
print(type(AutoModel.from_pretrained("converted")).__name__)
"""
    assert run_beside(stranger, program) == [
        "chair.ply: 964",
        "['height', 'sides']",
        "PosPoolForPointCloudClassification",
        "PosPoolModel mine.pospool.modeling_pospool",
        "2",
        "True",
        "4",
        "4",
        "['accuracy', 'loss', 'mean_class_accuracy', 'top_two'] 1.0 True",
        "PosPoolModel",
    ]


def test_a_package_beside_this_one_may_be_imported_first_and_be_gone(stranger):
    seen = "import {}; from hf_any3d.extensions import EXTENSIONS; print('mine' in EXTENSIONS)"
    assert run_beside(stranger, seen.format("mine.pospool")) == ["True"]
    left = stranger / "left"
    shutil.copytree(stranger / "mine-1.0.dist-info", left / "mine-1.0.dist-info")
    assert run_beside(left, seen.format("hf_any3d")) == ["False"]

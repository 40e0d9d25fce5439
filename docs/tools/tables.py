"""Write the pages that are tables of what is registered: `python -m docs.tools.tables`.

The pages are committed, so that they can be read without building the site; a test compares them with the registries.
"""

from __future__ import annotations

import csv
import importlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from docs.tools.published_tables import published_tables_page
from hf_any3d.data.catalog import dataset_module
from hf_any3d.data.files.labels import copy_endings
from hf_any3d.data.parquet import License, PublishedDataset
from hf_any3d.hub.published_table import PUBLISHED, SIZE_MARK
from hf_any3d.integration.registration import ENCODERS, MODELS, PIPELINES, PROCESSORS
from hf_any3d.modeling.encoders import UnsupportedEncoder, composite_checkpoints, encoder_families
from hf_any3d.modeling.encoders.registry import select_tower
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.registry import DATASETS, FORMATS, TASKS, full_name
from hf_any3d.tasks.settings import settings_of
from hf_any3d.tuners.tuners_utils import EncoderLayersConfig, EncoderTunerConfig

DOCS = Path(__file__).resolve().parents[1]
ANY_ENCODERS = Path(__file__).with_name("any_encoders.csv")
"""Records of `python -m tests.any_encoders`."""
PUBLISHED_CHECKS = Path(__file__).with_name("published_checks.json")
"""Records of `python -m tests.published.checks`."""

_NOTE = "<!-- Written by `python -m docs.tools.tables` from the registries. -->"
_RULE = """## How an encoder is understood

A small copy with random weights runs on a few words, a small image, one frame of a video or a recording while its
forward pass is watched. This takes a second and downloads no weights.

- The longest list of modules called once each, in order, on tokens `(batch, tokens, width)` is its layer stack.
- What reaches the layers without any input is its position table; rotary arguments are fitted.
- Causal masks are cleared, so all tokens attend to each other.
- The module whose output is added last is the branch that guided adapters extend.

Then the layers must reproduce the copy's own outputs, and exchanging two tokens with their positions must exchange
their outputs. Encoders that fail are refused; if the copy fails, the message names the step and quotes the encoder.
"""
_POSITIONS = """## Positions at continuous coordinates

- **Tables** (words on a line, patches on a grid, sinusoids) are interpolated linearly and averaged over the views.
- **Relative biases** are interpolated at the distance of two tokens, and averaged over the views. DeBERTa's scores
  depend on content and distance together: distances are rounded, and each head uses one view.
- **Rotary** encoders rotate queries and keys by the coordinates. `rotary_views` defines how views are combined:
  `split_frequencies` (the default: each frequency belongs to one view, so every head depends on all views),
  `split_heads`, `mean_angle` (on a line, the mean coordinate is a projection onto one direction) or `first_view`.
  The first two preserve places completely. In accuracy the four did not differ beyond noise
  ([study](../studies/results/rotary_views.md)).
- **Convolutions** run along the line of each view: tokens are distributed to integer positions, convolved with the
  encoder's weights, and interpolated at their coordinates.
- Encoders without a table have a line of length `line_length`, by default `num_tokens`.
- The class token is in the middle of every view; BEiT and Data2Vec have separate biases for it.
- Register and distillation tokens are left out. Language models attend in both directions. Local attention has no
  windows here: windows follow the order of the words, and a cloud has no order.

## What is tested

For every declared encoder, with small random weights, and for some of each other structure:

- At integer coordinates, each layer has the same output as in the encoder's own forward pass.
- All tokens attend to each other. Outputs depend on the coordinates, but not on the order of the tokens.
- Gradients are finite, and the encoder does not change.
- A saved model is loaded with equal outputs.

Training, saving and loading were also tested with the real weights of all-MiniLM-L6-v2 (BERT), SmolLM2-135M-Instruct
(LLaMA), DINOv2-small and Whisper tiny.en ([study](../studies/results/donors.md)).
"""


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a table."""
    header = list(header)
    rows = [header, ["---"] * len(header), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return ["|" + "|".join(f" {cell} " if cell != "---" else cell for cell in row) + "|" for row in rows]


def _any_encoders() -> list[str]:
    """Return the section about all types of transformers, from the stored sweep."""
    with ANY_ENCODERS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    working: dict[str, list[str]] = {}
    refused: dict[str, list[str]] = {}
    for row in rows:
        kinds, said = (working, row["positions"]) if row["verdict"] == "right" else (refused, row["reason"])
        tower = f" ({row['tower']})" if row["tower"] in ("vision", "audio") else ""
        kinds.setdefault(said or "not tried", []).append(f"`{row['model_type']}`{tower}")
    right = sum(len(names) for names in working.values())
    lines = [f"{right} of {len(rows)} text, vision and audio encoders of transformers work (text unless noted). For"]
    lines += ["a newer release, or a checkpoint of your own: `hf-any3d encoder NAME`.", ""]
    for title, kinds in (("positions", working), ("why it does not work", refused)):
        ordered = sorted(kinds.items(), key=lambda item: -len(item[1]))
        lines += [*markdown_table((title, "`model_type`"), ((said, ", ".join(names)) for said, names in ordered)), ""]
    return lines[:-1]


def _is_usable(model_type: str, tower: str) -> bool:
    try:
        select_tower(AutoConfig.for_model(model_type), tower)
    except UnsupportedEncoder:
        return False
    return True


def encoders_page() -> str:
    """Return the page of encoders: families, checkpoints with several encoders, and unsupported encoders."""
    lines = [
        "# Encoders: which BERT, ViT, CLIP, DINOv2, Whisper or LLaMA can read point clouds",
        "",
        "You can put any of these pretrained encoders into Any2Point: its layers stay frozen and process point",
        "tokens, at positions found by [virtual projection](concepts/virtual_projection.md). To ask for a name:",
        "`hf-any3d encoder facebook/dinov2-small`.",
    ]
    lines += ["", _NOTE, "", "## Encoders of transformers", "", *_any_encoders(), "", _RULE.rstrip()]
    lines += ["", "## Declared families", "", "Encoders that the rule does not serve:", ""]
    order = {"text": 0, "vision": 1, "audio": 2}
    families = sorted(encoder_families().items(), key=lambda item: order[item[1].tower])
    lines += markdown_table(
        ("encoder", "`model_type`", "tower", "positions", "evaluation", "layers"),
        (
            (family.name, f"`{model_type}`", family.tower, family.kind, family.reached, f"`{family.layers}`")
            for model_type, family in families
        ),
    )
    lines += ["", f"{len(families)} model types.", "", "## Checkpoints with several encoders", ""]
    for model_type, towers in sorted(composite_checkpoints().items()):
        usable = [tower for tower in towers if _is_usable(model_type, tower)]
        lines.append(f"- `{model_type}`: " + ", ".join(f'`tower="{tower}"`' for tower in usable))
    lines += ["- Any other: the encoders whose configs it holds, `text_config`, `vision_config`, `audio_config` …"]
    lines += ["", _POSITIONS.rstrip(), ""]
    return "\n".join(lines)


def models_page() -> str:
    """Return the page of models, pipelines and PEFT methods."""
    tasks: dict[type, str] = {}
    for task, (_, auto) in PIPELINES.items():
        # Of several tasks with the models of one head, the first.
        tasks.setdefault(auto, task)
    rows = []
    for config, (base, heads) in MODELS.items():
        with_heads = [(model, auto) for auto, models in heads.items() for model in models]
        for model, auto in [(base, None)] * (base not in dict(with_heads)) + with_heads:
            opens = f"`{auto.__name__}`" if auto else "`AutoModel`"
            task = f"`{tasks[auto]}`" if auto in tasks else "`point-cloud-feature-extraction`" if not auto else ""
            rows.append((f"`{model.__name__}`", f"`{config.model_type}`", first_line(model), opens, task))
    lines = ["# Models, pipelines and adapter classes", "", _NOTE, "", "## Models", ""]
    lines += markdown_table(("class", "`model_type`", "what it is", "opens with", "pipeline"), rows)
    lines += [
        "",
        "Every model also opens with its own class. `AutoModel` opens a model with a head as its base model,",
    ]
    lines += ["which the pipeline `point-cloud-feature-extraction` uses.", ""]
    lines += ["The processor is `PointCloudProcessor`, except for these:", ""]
    lines += [
        f"- `{config.model_type}`: `{processor.__name__}`"
        for config, processor in PROCESSORS.items()
        if processor is not PointCloudProcessor
    ]
    names = ", ".join(f"`{encoder.__name__}` (`{config.model_type}`)" for config, encoder in ENCODERS.items())
    lines += ["", f"This package adds to the encoders of transformers: {names}.", "", "## Pipelines", ""]
    lines += markdown_table(
        ("task", "class", "what it does"),
        ((f"`{task}`", f"`{made.__name__}`", first_line(made)) for task, (made, _) in sorted(PIPELINES.items())),
    )
    lines += ["", "## PEFT methods", ""]
    methods = sorted(_subclasses(EncoderTunerConfig) - {EncoderLayersConfig}, key=lambda config: config.__name__)
    lines += markdown_table(
        ("config", "what it adds"), ((f"`{config.__name__}`", first_line(config)) for config in methods)
    )
    lines += [
        "",
        "Stock LoRA, DoRA, IA3, VeRA, BOFT, OFT and LN tuning work on the same models: [adapters](adapters.md).",
        "All classes run [in 8 and 4 bits](quantization.md), except that `ActForPreTraining` trains full weights.",
    ]
    return "\n".join(lines) + "\n"


def licenses_page() -> str:
    """Return the page of datasets with their terms and sources."""
    lines = ["# Data set licenses: terms and where to get them", "", _NOTE, ""]
    lines += [
        "`load_point_dataset(name)` opens these datasets. It downloads nothing, and this package contains no data"
    ]
    lines += [
        "except the embedded shapes: you agree to the terms of a dataset where you get it. For layouts, options and"
    ]
    lines += ["row counts, see [published datasets](datasets.md).", ""]
    rows = []
    for name in DATASETS:
        described = dataset_module(name)
        dataset: PublishedDataset | None = getattr(described, "DATASET", None)
        license: License | None = dataset.license if dataset else getattr(described, "LICENSE", None)
        terms = "yours"
        if license is not None:
            terms = f"{license.terms if license.name == 'other' else license.name} ([terms]({license.link}))"
        content = dataset.description if dataset else first_line(described)
        rows.append((f"`{name}`", content, terms, f"[page]({dataset.homepage})" if dataset else ""))
    lines += markdown_table(("name", "content", "terms", "page of the authors"), rows)
    lines += [
        "",
        "`push_point_dataset` puts the terms into the card of what it pushes. It pushes data without an open license",
    ]
    lines += ["only to private repositories, unless `rights_confirmed=True`."]
    return "\n".join(lines) + "\n"


_LOADED = """You can read all of these files with one function or command. For LAS, LAZ, PLY, PCD, NumPy and most text
files, you can also write a copy with new labels.

```python
import hf_any3d

cloud = hf_any3d.read_point_cloud(hf_any3d.example_file("chair.ply"))
print(cloud.points.shape, cloud.is_mesh)  # (964, 3) True
points = cloud.sample_surface(1024).points  # for a mesh; a point cloud already has its points
```

`cloud.colors`, `cloud.normals`, `cloud.labels` and `cloud.intensity` are arrays with a row for each point, or None if
the file has no such data. Colors are red, green and blue from 0 to 1 in sRGB, which scanners, PLY, LAS and `.pnts`
store; the linear ones of glTF are converted. `hf-any3d data check FILE` prints what was read.

## iPhone LiDAR apps, CAD and other programs

`.usdz`, `.fbx`, `.dae`, `.blend` and `.dxf` cannot be read: export GLB, OBJ or PLY instead. The error message names
the formats to export. For CloudCompare, PDAL, PCL, Open3D and others, see [other programs](other_programs.md).

## All file types
"""
_NAMED_TYPES = """`.colmap`, `.kitti` and `.nuscenes` are types for `--file-type` and `file_type=`. Use them if a .txt
or .bin file is not recognized; see [how .bin files are told apart](reading_files.md#kitti-and-nuscenes-sweeps)."""
_WRITE = """## Convert, write and label files

| you want | use |
|---|---|
| another format | `hf-any3d data convert scan.e57 --to ply --output FOLDER`, or `--to obj`, `--to npz` |
| the same in Python | `write_point_cloud("scan.ply", cloud)` from `hf_any3d.data.files` |
| a [labeled copy](segmentation.md#labeled-copies-of-files) | `hf-any3d segment`, `write_labels(file, copy, labels)` |

`.npz` keeps everything that a point cloud [can hold](#what-is-left-out). `.ply` keeps all of it except the names of
classes; it stores colors in 8 bits, and the up axis and unit as comments. `.obj` keeps points, colors, normals, faces,
up axis and unit.

## Unusual file extensions

If the extension is unknown, the content decides: a PLY file named `scan.dat` is read as PLY. Text has no signature, so
pass `file_type="txt"` or `--file-type txt`. If a known extension does not fit the content, the error names the type to
pass.

## What is left out

A point cloud can hold points, colors, normals, labels, intensities, rings (the number of the laser that measured each
point), return numbers and counts, faces with colors and labels, an offset, an up axis and a unit. Other data are left
out when a file is read, with a warning that names them, unless you
[ask for them](reading_files.md#attributes-and-extra-bytes). Data that most files of a format have are left out without
a warning (see the table). A [labeled copy](segmentation.md#labeled-copies-of-files) keeps everything in the file, such
as the GPS time of a LAZ; a converted file does not."""


def formats_page() -> str:
    """Return the page of file formats."""
    modules: dict[str, list[str]] = {}
    for file_type, module in FORMATS.items():
        modules.setdefault(module, []).append(file_type)
    rows, not_read = [], []
    for module, file_types in modules.items():
        reader = importlib.import_module(full_name(module, "hf_any3d.data.files"))
        endings = ", ".join(f"`.{name}`" for name in sorted(file_types))
        back = ", ".join(f"`.{name}`" for name in sorted(file_types) if copy_endings(f"a.{name}")) or "–"
        rows.append((endings, first_line(reader), back))
        # What every file of a format has, so that no warning names it.
        if (standard := getattr(reader, "NOT_READ", None)) is not None:
            not_read.append((endings, standard))
    lines = ["# File formats: load LAS, LAZ, PLY, OBJ, STL, GLB, E57, PCD and other files", "", _NOTE, "", _LOADED]
    copied = sum(bool(copy_endings(f"a.{name}")) for name in FORMATS)
    lines += [f"There are {len(FORMATS)} file types, with extensions in lower or upper case. {copied} of them can be"]
    lines += ["written as labeled copies:", ""]
    lines += markdown_table(("extension", "content", "labeled copy"), sorted(rows))
    lines += ["", _NAMED_TYPES]
    lines += ["", _WRITE, ""]
    lines += markdown_table(("extension", "left out without a warning"), sorted(not_read))
    lines += ["", "For names of attributes, units, map coordinates and limits, see"]
    lines += ["[how files are read](reading_files.md)."]
    return "\n".join(lines) + "\n"


_ASKED = """Set these in every interface of a task: as arguments of the pipeline, options of the command and its
[jobs](command_line.md#jobs-over-many-files), arguments of `many_files.ask`, fields of the [service](serve.md) and
inputs of the demo page. A dash means a default of the model or processor."""


def settings_page() -> str:
    """Return the page of the settings of tasks."""
    lines = ["# Settings: parameters, defaults, limits", "", _ASKED, "", _NOTE]
    for name, task in TASKS.items():
        if task.settings is None:
            continue
        lines += ["", f"## {name}", "", f"`hf-any3d {task.command}`; {task.kind}.", ""]
        rows = []
        for setting, declared in settings_of(task.settings).items():
            default = declared.default
            values = " ".join(f"`{word}`" for word in declared.words)
            limits = " to ".join(f"{limit:g}" for limit in (declared.low, declared.high) if limit is not None)
            if declared.low is not None and declared.high is None:
                limits = f"{limits} or more"
            meaning = f"{declared.help} None: {declared.none}." if declared.none else declared.help
            shown = "–" if default is None else f"`{default}`"
            # Other defaults, and doors that do not take it
            further = [f"{door}: {value} by default" for door, value in declared.defaults.items()]
            further += [f"not in {door}: {reason}" for door, reason in declared.refused.items()]
            rows.append((f"`{setting}`", shown, values or limits, meaning, "; ".join(further)))
        lines += markdown_table(("setting", "default", "values", "meaning", "elsewhere"), rows)
    return "\n".join(lines) + "\n"


def published_page() -> str:
    """Return the page of published checkpoints, with their licenses and text towers."""
    lines = ["# Published checkpoints: model zoo, names and licenses", "", _NOTE, ""]
    lines += ["You can open these names with pipelines, commands, `from_pretrained` and `open_published`"]
    lines += ["([how](open_encoders.md)). Every tensor of a file is accounted for. Figures are the authors', or, for"]
    lines += ["`torch-pointcloud`, that library's."]
    runs = json.loads(PUBLISHED_CHECKS.read_text(encoding="utf-8"))["runs"]
    count = sum(len(published.files) for published in PUBLISHED.values())
    lines += [
        f"Of {count} names, {len(runs)} were [opened with real weights](#opened-for-real) here; the others are tested",
        "with files of the layout that their programs write. One figure was compared, on",
        "[a part of its data](results.md#published-weights-on-published-data).",
        "",
    ]
    rows = []
    for name, published in PUBLISHED.items():
        texts = published.text_tower and f"`{published.text_tower}`"
        if published.texts and not texts:
            texts = f"{published.texts}: features from elsewhere"
        for size, file in published.files.items():
            opened = name if size is None else f"{name}{SIZE_MARK}{size}"
            others = ["the others there" if path == "/" else f"`{path}`" for path in file.parts.values()]
            others += [f"a part of `{part.repository}`" for part in file.borrowed.values()]
            rows.append(
                (
                    f"`{opened}`",
                    ", ".join([f"`{file.path}`", *others]),
                    f"`{file.model_class or published.system.model_class}`",
                    texts or "",
                    "; ".join(filter(None, (file.remark, file.reported))),
                )
            )
    lines += markdown_table(("name", "files", "opens with", "texts are encoded by", "remark"), rows)
    lines += ["", "## Opened for real", ""]
    lines += ["What the recorded runs saw. `tests/published/judging.py` defines chance and what is expected. With a"]
    lines += [
        "network, `python -m tests.published.checks NAME --output docs/tools/published_checks.json` records another."
    ]
    lines += ["", *(row_of_check(name, record) for name, record in runs.items())]
    lines += ["", "## Licenses", ""]
    systems = {published.system.title: published.system for published in PUBLISHED.values()}
    lines += markdown_table(
        ("program", "its license", "license of the weights", "stated by", "commercial use", "page of the authors"),
        (
            (system.title, system.code_license, system.weights_license, system.license_source)
            + ("no; asked for" if system.non_commercial else "see the license", f"<{system.page}>")
            for system in systems.values()
        ),
    )
    return "\n".join(lines) + "\n"


def row_of_check(name: str, record: dict[str, Any]) -> str:
    """Return the line about a name that was opened for real."""
    verdict = "passed" if record["passed"] else "failed"
    seen = "; ".join(f"{check['name']}: {check['seen']}" for check in record["checks"])
    return f"- `{name}` {verdict} on {record['date']} with {record['versions']['hf-any3d']}: {seen}."


def first_line(described: object) -> str:
    """Return the first sentence of a docstring, in one line."""
    return " ".join((described.__doc__ or "").strip().split("\n\n")[0].split())


def _subclasses(of: type) -> set[type]:
    return {below for child in of.__subclasses__() for below in (child, *_subclasses(child))}


PAGES: dict[str, Callable[[], str]] = {
    "dataset_licenses.md": licenses_page,
    "encoders.md": encoders_page,
    "formats.md": formats_page,
    "models.md": models_page,
    "published.md": published_page,
    "settings.md": settings_page,
    "published_tables.md": lambda: published_tables_page(_NOTE, markdown_table),
}
"""File in `docs` -> function that returns it."""


def main(check: bool) -> None:
    """Write the pages, or exit with an error if a committed page is not what the registries give."""
    for name, page in PAGES.items():
        if not check:
            (DOCS / name).write_text(page(), encoding="utf-8")
        elif (DOCS / name).read_text(encoding="utf-8") != page():
            sys.exit(f"docs/{name} is not what the registries give; run `python -m docs.tools.tables`")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])

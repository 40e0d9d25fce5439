"""The published tables: their recipes and figures, the settings of each row, and a dry run of each name."""

import re
from dataclasses import fields

import pytest
from typer.testing import CliRunner

from examples.repeat import __main__ as repeat
from examples.repeat.published_tables import find_examples, published_tables
from examples.repeat.reproducing import Plan, setting_words
from examples.repeat.table_questions import QuestionArguments
from examples.repeat.table_weights import WeightsArguments
from hf_any3d.hub.published_table import find_published, is_published
from hf_any3d.modeling.act import ActAutoencoderConfig, ActConfig
from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.modeling.detr3d import Detr3DConfig
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig
from hf_any3d.training.detection import Detection
from hf_any3d.training.minigpt3d_stages import StageArguments, StageTrainingArguments
from hf_any3d.training.pretraining import (
    AutoencoderTrainingArguments,
    DistillationTrainingArguments,
    PretrainingDataArguments,
    ProbeArguments,
    StudentArguments,
    TeacherArguments,
)
from hf_any3d.training.requests import parse_arguments
from hf_any3d.training.tasks import Classification, Segmentation
from tests.turns import ALL_PAIRS

EXAMPLES = find_examples()
TABLES = published_tables(EXAMPLES)
STEPS = [(name, step) for name, table in TABLES.items() for row in table.rows.values() for step in row.steps]
KINDS = {
    "run_point_cloud_classification.py": Classification.argument_classes(),
    "run_point_cloud_segmentation.py": Segmentation.argument_classes(),
    "run_point_cloud_object_detection.py": Detection.argument_classes(),
    "run_act_autoencoder.py": (TeacherArguments, PretrainingDataArguments, AutoencoderTrainingArguments),
    "run_act_pretraining.py": (
        StudentArguments,
        PretrainingDataArguments,
        ProbeArguments,
        DistillationTrainingArguments,
    ),
}
"""Arguments of the programs."""


def config_of(program, settings):
    """Return the class of the config whose fields `model_config` sets."""
    if program == "run_act_autoencoder.py":
        return ActAutoencoderConfig
    if program == "run_point_cloud_object_detection.py":
        return Detr3DConfig
    if program == "run_minigpt3d.py":
        return MiniGPT3DConfig
    return Any2PointConfig if "encoder_name_or_path" in settings else ActConfig


def test_recipes_exist_and_their_comments_state_the_same_figures():
    page = (EXAMPLES.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    for table in TABLES.values():
        for row in table.rows.values():
            for step in row.steps:
                for name in filter(None, (step.recipe, step.released and f"released/{step.released}")):
                    assert (EXAMPLES / "recipes" / f"{name}.yaml").is_file()
            (figure, *others) = row.published.values() or (None,)
            if figure is None or others or row.way is not None or len(row.steps) > 1 or not table.trains:
                continue
            text = (EXAMPLES / "recipes" / f"{row.steps[0].recipe}.yaml").read_text(encoding="utf-8")
            assert re.findall(r"The authors report ([\d.]+) %", text) == [str(figure)], row.steps[0].recipe
            assert str(figure) in page and (row.deviation is None or f"± {row.deviation}" in page)


def test_figures_of_the_authors_weights_are_those_of_their_records():
    for name, table in TABLES.items():
        if table.trains or name == "pointnet-modelnet40":  # its record states none, the paper does
            continue
        for title, row in table.rows.items():
            _, size, published = find_published(row.steps[0].settings["model_name_or_path"])
            (figure,) = row.published.values()
            reported = published.files[size].reported
            assert figure == float(re.findall(r"[\d.]+", reported)[0]), (name, title)
            assert ("measured by torch-pointcloud" in reported) == ("torch-pointcloud" in table.source), (name, title)
            assert ("with voting" in reported) <= ("voting" in table.source), (name, title)


def test_every_row_has_a_published_figure_and_starts_where_the_paper_does():
    for name, table in TABLES.items():
        for title, row in table.rows.items():
            # Without columns, rows are pictures.
            assert not table.columns or any(figure is not None for figure in row.published.values()), (name, title)
            start = Plan(EXAMPLES, EXAMPLES).settings_of(row.steps[-1]).get("model_name_or_path", "")
            if "Point-MAE" in table.source:
                assert start == "Pang-Yatian/Point-MAE:pretrain" and is_published(start), (name, title)


def test_programs_know_the_settings_of_every_row():
    plan, seen = Plan(EXAMPLES, EXAMPLES), set()
    for name, step in STEPS:
        if (key := (step.program, step.recipe, str(step.settings))) in seen:
            continue
        seen.add(key)
        settings = plan.settings_of(step)
        if step.program == "table_questions":
            assert set(settings) <= {field.name for field in fields(QuestionArguments)}
        elif step.program == "table_weights":
            assert set(settings) <= {field.name for field in fields(WeightsArguments)}
            assert is_published(settings["model_name_or_path"]), name
        elif step.program == "run_minigpt3d.py":
            known = {field.name for kind in (StageArguments, StageTrainingArguments) for field in fields(kind)}
            assert set(step.settings) <= known, name
        elif step.program in KINDS:
            words = [str(plan.recipe_of(step)), *setting_words(step.settings)]
            parse_arguments(KINDS[step.program], words)
        config = config_of(step.program, settings)()
        assert all(hasattr(config, field) for field in settings.get("model_config", {})), name


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory):
    """A folder for all dry runs, which share models, data and equal steps."""
    return tmp_path_factory.mktemp("reproduce")


def tables_to_run() -> list[str]:
    """Return a table for each sequence of programs; what the others give to these is parsed above."""
    first = {}
    for name, table in TABLES.items():
        row = next(iter(table.rows.values()))
        # The authors' weights are judged on one kind of small data for each dataset.
        judged = "" if table.trains else row.steps[0].settings["dataset_name"]
        first.setdefault((*(step.program for step in row.steps), bool(table.columns), judged), name)
    return list(TABLES if ALL_PAIRS else first.values())


@pytest.mark.parametrize("name", tables_to_run())
def test_dry_run(name, output_dir):
    row = next(iter(TABLES[name].rows))
    words = ["reproduce", name, "--dry-run", "--row", row, "--output-dir", str(output_dir), "--json"]
    result = CliRunner().invoke(repeat.app, words)
    assert result.exit_code == 0, result.output
    text = (output_dir / name / f"{name}.md").read_text(encoding="utf-8")
    # Memory of a GPU needs one, cosines of sentences need their encoders.
    lines = [line for line in text.splitlines() if "not run" in line]
    assert all(re.search("GPU memory|Sentence-BERT|SimCSE", line) for line in lines), lines
    if not TABLES[name].columns:
        assert "Pictures:" in text and ".html" in text

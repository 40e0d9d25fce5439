"""`hf-any3d evaluate`: score a model on labeled clouds, or a MiniGPT-3D by the published protocols."""

from __future__ import annotations

import contextlib
import sys
from enum import StrEnum
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hf_any3d.cli.caches import use_writable_cache
from hf_any3d.cli.command_line import ModelCommand
from hf_any3d.cli.errors import print_note
from hf_any3d.cli.evaluate_labels import LabelsCommand, are_points, evaluate_labels
from hf_any3d.cli.inputs import LeftOutFiles
from hf_any3d.cli.libraries import load_libraries
from hf_any3d.cli.opening import model_for
from hf_any3d.cli.options import (
    AsCsv,
    AsJson,
    DataDir,
    Device,
    Direction,
    LabelField,
    Revision,
    UnitOfFiles,
    json_object,
    option,
    output_option,
)
from hf_any3d.cli.outputs import DATA, check_output, write_results
from hf_any3d.cli.progress import hide_bars_of_datasets
from hf_any3d.extensions import EXTENSIONS, missing_package
from hf_any3d.tasks.settings import UP_OF_OBJECT
from hf_any3d.training.sources import find_data
from hf_any3d.utils.atomic_files import read_json_object, write_json
from hf_any3d.utils.messages import model_errors, percent, print_json, print_line, shown_path
from hf_any3d.utils.metric_names import metric_name, metric_value

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_any3d.evaluation.llm_judge import Judge
    from hf_any3d.training.saved_models import EvaluationSettings

# Commands of the group that a call without the name of a command stands for.
_DEFAULT, _LABELS, _NUMBERS = "classifier", "labels", "numbers"
# Option by which a call without the name of a command is about numbers of things.
_OPTION_OF_NUMBERS = "--numbers"
# Command that runs a model -> the score of each class.
_SCORES = {
    "predict": "accuracy",
    "segment": "iou",
    "detect": "ap_25",
    "zero-shot": "accuracy",
    "reconstruct": "chamfer_l1",
}


class JudgeKind(StrEnum):
    """Kinds of judges."""

    CLASS_NAMES = "class-names"
    ENDPOINT = "endpoint"
    LOCAL = "local"


class _ClassifierByDefault(TyperGroup):
    """Reads `evaluate MODEL …` as `evaluate classifier MODEL …`, whatever options come first.

    `evaluate PREDICTED TRUTH` of files or folders of points is read as `evaluate labels PREDICTED TRUTH`, or with
    `--numbers` as `evaluate numbers PREDICTED TRUTH`.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        # The first word is a model or an option, not a command.
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            of_points = _NUMBERS if _OPTION_OF_NUMBERS in args else _LABELS
            package = missing_package(f"evaluate {of_points}")
            if package is not None:
                raise ValueError(f"{_OPTION_OF_NUMBERS} is an option of {package}")
            args = [of_points if are_points(args[0]) else _DEFAULT, *args]
        return super().parse_args(ctx, args)


evaluation = typer.Typer(
    rich_markup_mode="markdown",
    cls=_ClassifierByDefault,
    no_args_is_help=True,
    help="Evaluate a trained model or predicted point labels. `evaluate MODEL …` is short for `evaluate "
    "classifier MODEL …`, `evaluate PREDICTED TRUTH` for `evaluate labels PREDICTED TRUTH`. Write a folder "
    "named like a command as ./NAME.",
)
evaluation.command(_LABELS, cls=LabelsCommand)(evaluate_labels)


@evaluation.command(_DEFAULT, cls=ModelCommand)
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory or Hub name of a model.")],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="A folder with one subfolder per class, or of scans with labeled boxes; a Parquet file or a "
            "folder of them, or a dataset in the built-in catalog or on the Hub (owner/name). For models trained on "
            "labeled tiles, a file or folder of files with point classes.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None, option("Dataset in the built-in catalog or on the Hub; DATA is then the folder of its files.")
    ] = None,
    recipe: Annotated[
        Path | None, option("Training recipe (YAML); its data, options and splits are used instead of DATA.")
    ] = None,
    data_dir: DataDir = None,
    options: Annotated[str | None, option("JSON object with dataset options, such as the variant.")] = None,
    split: Annotated[
        str | None, option("Split to evaluate; by default test, or the only split of a folder or file.")
    ] = None,
    label_field: LabelField = None,
    voting: Annotated[
        int | None,
        option("Also evaluate with test-time augmentation: mean logits over this many augmented copies.", min=0),
    ] = None,
    vote_augment: Annotated[
        list[str] | None, option("Transform for the copies of --voting, such as rotate; can be repeated.")
    ] = None,
    batch_size: Annotated[
        int | None,
        option(
            "Point clouds per batch; by default 32, or 1 for models whose prediction depends on the other clouds in "
            "the batch.",
            min=1,
        ),
    ] = None,
    max_samples: Annotated[int | None, option("Evaluate on at most this many samples.", min=1)] = None,
    up_axis: Annotated[Direction | None, option(UP_OF_OBJECT)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for test-time augmentation.")] = 0,
    cpu: Annotated[bool, typer.Option("--cpu", help="Run on the CPU only.")] = False,
    unit: UnitOfFiles = None,
    output: Annotated[
        Path | None,
        output_option(
            "Also write an HTML page with the confusion matrix, classes and worst mistakes (.html), or "
            "the metrics (.json, .csv)."
        ),
    ] = None,
    report_file: Annotated[
        Path | None,
        output_option(
            "Also write a JSON report of a classifier on the test split, with its data, settings and training, "
            "to compare several models.",
            "--report",
        ),
    ] = None,
    report_facts: Annotated[
        str | None,
        option('JSON object with metadata for --report that the model does not record, such as {"seed": 0}.'),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, including the score of each class.")] = False,
    as_csv: AsCsv = False,
) -> None:
    """Evaluate a trained model on labeled data.

    Reports accuracy for classifiers and zero-shot models, IoU for segmentation, average precision for detection and
    Chamfer distance for autoencoders. Results with test-time augmentation are listed separately. If
    files of a folder cannot be read, it evaluates the rest and exits with code 2. You can leave out the word
    `classifier`; with two files, `evaluate PREDICTED TRUTH` compares their labels (`hf-any3d evaluate labels --help`).
    """
    _check_data(data, dataset, recipe, data_dir)
    # What can be refused is refused before torch is loaded and data are read, which takes seconds to minutes.
    suffix = check_output(output, (".html", *DATA), as_json=as_json, as_csv=as_csv)
    found = model_for(model, *_SCORES)
    model = found.name
    model_type = str(found.config.get("model_type"))
    # Features of such models are of the whole file around a point; blocks and rows have no such surroundings.
    judge_files = next(
        (one.file_models[model_type] for one in EXTENSIONS.values() if model_type in one.file_models), None
    )
    if judge_files is not None:
        # Of options that are not given, flags are False, the seed is 0 and all others None.
        unused = {"dataset": dataset, "recipe": recipe, "data-dir": data_dir, "options": options, "split": split}
        unused |= {"voting": voting, "vote-augment": vote_augment, "batch-size": batch_size}
        unused |= {"up-axis": up_axis, "max-samples": max_samples}
        unused |= {"report": report_file, "report-facts": report_facts, "seed": seed}
        _refuse_unused(model, unused)
        # `dataset` and `recipe` were refused above, so that `data` is given.
        given = None if unit is None else unit.value
        asked = {"unit": given, "label_field": label_field, "use_cpu": cpu}
        resolve_name(judge_files)(model, str(data), output, **asked, as_json=as_json, as_csv=as_csv)
        return
    if unit is not None:
        raise ValueError(f"--unit: {model} does not measure in meters; --unit is for models of labeled tiles")
    if label_field is not None:
        raise ValueError("--label-field: expected a model of labeled files; for folders, --options has label_field")
    # An adapter alone has no config that names its kind; it is taken for a classifier's.
    command = "predict" if found.task is None else found.task.command
    if command != "predict":
        _refuse_for_others(model, voting=voting, up_axis=up_axis)
    # A report compares models on the whole test split: a part of it, or another split, would not be comparable.
    stated = _stated_facts(
        report_file, report_facts, command == "predict" and max_samples is None and split in (None, "test")
    )
    use_writable_cache()
    load_libraries()
    hide_bars_of_datasets()
    # What the labels are for is left out: here the model decides it.
    arguments, file = ({}, recipe) if recipe is not None else find_data(data, dataset)[:2]
    # Only what is given, so that everything else stays as the recipe or the defaults have it.
    optional = {
        "data_dir": data_dir,
        "dataset_options": options,
        "voting": voting,
        "vote_augment": vote_augment or None,
    }
    arguments |= {name: value for name, value in optional.items() if value is not None}
    # Progress and the trainer's output go to stderr, so that stdout holds the results alone.
    with contextlib.redirect_stdout(sys.stderr), LeftOutFiles() as left_out:
        from hf_any3d.model_card.evaluation_reports import evaluation_report, known_facts
        from hf_any3d.training.evaluated_rows import (
            evaluated_rows,
            evaluation_arguments,
            first_rows,
            with_normals_of_model,
        )
        from hf_any3d.training.saved_models import EVALUATIONS, EvaluationSettings

        data_arguments, protocol = evaluation_arguments(model, arguments, file)
        # Before the evaluation, so that a missing fact is an error at once.
        trained = None
        if stated is not None:
            # A file has no name of a dataset; the facts do not take that of its loader for one.
            source = "parquet" if data_arguments.train_file is not None else data_arguments.dataset_name
            trained = known_facts(model, source, stated)
        split, rows, name = evaluated_rows(command, data_arguments, protocol, split, recipe)
        warning = "" if name is None else warn_if_learned(model, name)
        rows = with_normals_of_model(first_rows(rows, max_samples), model, data_arguments)
        direction = None if up_axis is None else up_axis.value
        settings = EvaluationSettings(data_arguments, protocol, batch_size, seed, cpu, direction)
        metrics, by_class = EVALUATIONS[command](model, rows, split, settings)
        if report_file is not None:
            assert trained is not None
            of_data: Any = data_arguments.dataset_options  # a mapping, once the arguments are built
            write_json(report_file, evaluation_report(model, trained, of_data, metrics, len(rows)))
    from hf_any3d.evaluation.comparison import training_report
    from hf_any3d.evaluation.scan_scores import to_json

    score = _SCORES[command]
    facts: dict[str, Any] = {"model": model, "metrics": metrics, f"class_{score}": by_class}
    facts["scans"] = to_json({name: scores.of_rows(rows) for name, scores in settings.details.scans.items()})
    facts["training"] = training_report(Path(model))
    write_results(facts, _table_rows(metrics, by_class, score), output, as_json, as_csv)
    if suffix == ".html":
        # Names without the folders of this machine
        name = Path(str(data or data_dir or recipe or dataset)).name
        _write_page(output, f"Evaluation of {Path(model).name} on {name}", warning, facts, score, rows, settings)
    is_for_people = not as_json and not as_csv
    # Scores of single classes are in --json, --csv and --output alone.
    if is_for_people:
        width = max(map(len, metrics))
        for split, figures in metrics.items():
            texts = [f"{metric_name(name)} {metric_value(name, value)}" for name, value in figures.items()]
            print_line(f"{split:<{width}}  {'   '.join(texts)}")
    # Last, since it ends the command with another exit code if files were left out.
    left_out.finish()


def _check_data(data: str | None, dataset: str | None, recipe: Path | None, data_dir: str | None) -> None:
    """Check that the data are named exactly once."""
    if recipe is not None and (data is not None or dataset is not None):
        raise ValueError(f"--recipe {recipe} names its own data; leave out DATA and --dataset")
    if data is None and dataset is None and recipe is None:
        raise ValueError("DATA is missing; expected a folder, a file, the name of a dataset, or --recipe")
    if data is not None and data_dir is not None:
        raise ValueError(f"--data-dir {data_dir} cannot be combined with DATA; leave out one of them")


def warn_if_learned(model: str, name: str) -> str:
    """Warn if a model was trained on data of this name, and return the warning for a page, or nothing."""
    # A model on the hub has no such file here, and gives no warning.
    trained = read_json_object(Path(model) / "metrics.json").get("data")
    if isinstance(trained, dict) and trained.get("name") == name:
        text = f"was trained on data named {name}; if these are the same scans, the scores are optimistic"
        print_note(f"warning: {model} {text}")
        return f"{shown_path(model)} {text}"
    return ""


def _refuse_unused(model: str, options: dict[str, Any]) -> None:
    """Refuse options that a model of whole files has no use for."""
    for name, value in options.items():
        if value not in (None, False, 0):
            raise ValueError(f"--{name} has no effect on {model}, which reads whole files; leave it out")


def _refuse_for_others(model: str, *, voting: int | None, up_axis: str | None) -> None:
    """Refuse options that only classifiers have."""
    option = None
    if voting:
        # 0 votes are none, which every model has.
        option = "--voting"
    elif up_axis is not None:
        option = "--up-axis"
    if option is not None:
        raise ValueError(f"{option}: {model} is not a classifier; {option} is only for classifiers")


def _stated_facts(report_file: Path | None, report_facts: str | None, is_test: bool) -> dict[str, Any] | None:
    """Return the facts given by `--report-facts`; None if no report is written."""
    facts_alone = report_file is None and report_facts is not None
    if facts_alone or (report_file is not None and not is_test):
        raise ValueError("--report, with --report-facts: expected a classifier, its split test, and no --max-samples")
    return None if report_file is None else json_object("--report-facts", report_facts)


def _table_rows(metrics: dict[str, Any], by_class: dict[str, Any], score: str) -> list[dict[str, Any]]:
    """Return a row for each split: its figures, then the score of each class."""
    rows = []
    for split, figures in metrics.items():
        row = {"split": split, **figures}
        # Each class has a column of its own, such as "iou of chair".
        for label, share in by_class.get(split, {}).items():
            row[f"{score} of {label}"] = share
        rows.append(row)
    return rows


def _write_page(
    output: Path | None,
    title: str,
    warning: str,
    facts: dict[str, Any],
    score: str,
    rows: Dataset,
    settings: EvaluationSettings,
) -> None:
    """Write the page of an evaluation, with a warning about its data if there is one."""
    from hf_any3d.visualization.evaluation_page import write_evaluation_page
    from hf_any3d.visualization.show import view_of_row

    assert output is not None
    # Figures of votes have no scores of scans.
    scans = next((of_split["scans"] for of_split in facts["scans"].values()), [])
    summary = _accuracy_text(scans) if scans and "answer" in scans[0] else ""
    write_evaluation_page(
        output,
        title=title,
        summary=f"{summary} Warning: {warning}." if warning else summary,
        metrics=facts["metrics"],
        class_scores=facts[f"class_{score}"],
        confusions=settings.details.confusions,
        scans=scans,
        cloud=lambda number: view_of_row(rows[number], number),
        labels_of_points=settings.details.labels_of_points,
    )


def _accuracy_text(scans: list[dict[str, Any]]) -> str:
    """Return how many answers are right, with an interval."""
    from hf_any3d.evaluation.statistics import wilson_interval

    right = sum(scan["answer"] == scan["true"] for scan in scans)
    low, high = wilson_interval(right, len(scans))
    return (
        f"{percent(right / len(scans))} % of the predictions are correct: {right:,} of {len(scans):,} scans (95 % "
        f"interval {percent(low)} to {percent(high)} %)."
    )


@evaluation.command("minigpt3d", cls=ModelCommand)
def evaluate_minigpt3d(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Directory or Hub name of the model; without it, scores the existing answers in --output-dir.",
        ),
    ] = None,
    output_dir: Annotated[
        Path,
        typer.Option(help="Folder for answers, judgments and the summary; existing ones are reused.", writable=True),
    ] = Path("minigpt3d-evaluation"),
    protocol: Annotated[
        list[str] | None,
        option(
            "Benchmark: modelnet40-instruction, modelnet40-completion, objaverse-instruction, "
            "objaverse-completion or objaverse-caption. Can be repeated; by default all."
        ),
    ] = None,
    data_dir: DataDir = None,
    options: Annotated[str | None, option("JSON object with additional dataset options.")] = None,
    revision: Revision = None,
    generation: Annotated[str | None, option("JSON object with generation parameters.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Point clouds per batch.")] = 15,
    max_samples: Annotated[int | None, option("Evaluate on at most this many point clouds.", min=1)] = None,
    judge: Annotated[
        JudgeKind | None,
        option(
            "Judge: class-names (matches class names in the answer), endpoint (OpenAI-compatible) or "
            "local (a local language model); by default none."
        ),
    ] = None,
    judge_model: Annotated[
        str | None, option("Judge model: its name at the endpoint, or a directory or Hub name.")
    ] = None,
    judge_revision: Annotated[str | None, option("Branch, tag or commit of a local judge.")] = None,
    judge_url: Annotated[str, typer.Option(help="Base URL of the endpoint.")] = "https://api.openai.com/v1",
    judge_key_variable: Annotated[
        str, typer.Option(help="Environment variable with the API key of the endpoint.")
    ] = "OPENAI_API_KEY",
    judge_settings: Annotated[str | None, option("JSON object with judge settings; null omits a field.")] = None,
    judge_prompt: Annotated[
        list[str] | None,
        option("File with a judge prompt; KIND is class, same or caption.", metavar="KIND=FILE"),
    ] = None,
    metrics: Annotated[
        bool, typer.Option("--metrics/--no-metrics", help="Compute BLEU, ROUGE and similar metrics for captions.")
    ] = True,
    sentence_encoder: Annotated[
        str, typer.Option(help="Model for Sentence-BERT cosine similarity.")
    ] = "sentence-transformers/all-mpnet-base-v2",
    simcse: Annotated[
        str, typer.Option(help="Model for SimCSE cosine similarity.")
    ] = "princeton-nlp/sup-simcse-roberta-large",
    device: Device = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for sampled answers and random classes.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Generate answers about point clouds and score them, following the PointLLM and MiniGPT-3D benchmarks.

    Resumes if interrupted. Answers are saved, so you can score them again with another judge.
    """
    from hf_any3d.data import load_point_dataset
    from hf_any3d.data.catalog.modelnet40_generative import DATASET
    from hf_any3d.evaluation.chat_evaluation import answer_protocols, judge_protocols, open_model, summary_lines
    from hf_any3d.evaluation.llm_judge import ClassNameJudge, EndpointJudge, LanguageModelJudge
    from hf_any3d.evaluation.llm_judge.verdicts import check_prompt
    from hf_any3d.evaluation.question_answering import PROTOCOLS, find_protocol
    from hf_any3d.training.evaluated_rows import first_rows

    # Protocols that are named twice are evaluated once, in the order given.
    protocols = [find_protocol(name) for name in dict.fromkeys(protocol or PROTOCOLS)]
    # Prompts and JSON are read before a model is loaded, so that a mistake in them costs nothing.
    prompts = {}
    for text in judge_prompt or ():
        kind, _, file = text.partition("=")
        prompts[kind] = check_prompt(Path(file).read_text(encoding="utf-8"), kind)
    generation_settings = json_object("--generation", generation)
    dataset_options = json_object("--options", options)
    settings_of_judge = json_object("--judge-settings", judge_settings)
    classes = DATASET.class_names
    load_libraries()

    def load(protocol: Any) -> Any:
        # What the user gives wins over the settings of the protocol.
        options_of_both = {**protocol.options, **dataset_options}
        rows = load_point_dataset(protocol.dataset, data_dir=data_dir, split="test", **options_of_both)
        return first_rows(rows, max_samples)

    # Bars and remarks of libraries go to stderr, so that stdout holds the summary alone.
    with contextlib.redirect_stdout(sys.stderr):
        # The judge by class names is plain code, and has no model.
        needs_name = judge in (JudgeKind.ENDPOINT, JudgeKind.LOCAL)
        if needs_name != (judge_model is not None):
            raise ValueError(
                f"--judge-model is {judge_model!r} and --judge is {judge.value if judge else None!r}; expected a "
                "model for the judges endpoint and local, and only for them"
            )
        opened_judge: Judge | None = None
        if judge is JudgeKind.CLASS_NAMES:
            opened_judge = ClassNameJudge(classes)
        elif judge is JudgeKind.ENDPOINT:
            opened_judge = EndpointJudge(str(judge_model), judge_url, settings_of_judge, judge_key_variable)
        elif judge is JudgeKind.LOCAL:
            opened_judge = LanguageModelJudge(str(judge_model), judge_revision, settings_of_judge, device)
        # Without a model, the answers that earlier runs left in the folder are judged.
        if model is not None:
            with model_errors(model):
                generate, about = open_model(model, revision, device)
            answer_protocols(protocols, load, generate, output_dir, about, generation_settings, batch_size, seed)
        encoders = {"sentence_encoder": sentence_encoder, "simcse": simcse} if metrics else None
        summary = judge_protocols(protocols, output_dir, opened_judge, classes, prompts, encoders, seed)
    if as_json:
        print_json(summary)
    else:
        for line in summary_lines(summary):
            print_line(line)

"""`hf-any3d evaluate minigpt3d`: what a model says about clouds, by the published protocols."""

from __future__ import annotations

import contextlib
import json
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_any3d.cli.failures import told_in_one_line
from hf_any3d.cli.quiet import quieten_libraries
from hf_any3d.messages import opened, say, say_json

if TYPE_CHECKING:
    from hf_any3d.evaluation import Judge

_URL = "https://api.openai.com/v1"


class JudgeKind(str, Enum):
    """Where verdicts come from."""

    CLASS_NAMES = "class-names"
    ENDPOINT = "endpoint"
    LOCAL = "local"


def evaluate_minigpt3d(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Directory or hub name. Left out, the answers that are in --output-dir are judged.",
            show_default=False,
        ),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(help="Gets answers, verdicts and the summary; what it has is not made again.")
    ] = Path("minigpt3d-evaluation"),
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="modelnet40-instruction, modelnet40-completion, objaverse-instruction, objaverse-completion or "
            "objaverse-caption; may be given several times. All by default.",
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Where the files of the datasets lie.", show_default=False)
    ] = None,
    options: Annotated[
        str | None, typer.Option(help="JSON object with further options of the datasets.", show_default=False)
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of the model.", show_default=False)] = None,
    generation: Annotated[
        str | None,
        typer.Option(help="JSON object with settings of generation, in place of published ones.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clouds that are asked about together.")] = 15,
    max_samples: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many clouds.", show_default=False)
    ] = None,
    judge: Annotated[
        JudgeKind | None,
        typer.Option(
            help="Who judges: class names in the answer, an OpenAI-compatible endpoint, or a language model here. "
            "Nobody by default.",
            show_default=False,
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="The judge: a name at the endpoint, or a directory or hub name.")
    ] = None,
    judge_revision: Annotated[str | None, typer.Option(help="Of a local judge.", show_default=False)] = None,
    judge_url: Annotated[str, typer.Option(help="Base address of the endpoint.")] = _URL,
    judge_key_variable: Annotated[
        str, typer.Option(help="Environment variable with the endpoint's key.")
    ] = "OPENAI_API_KEY",
    judge_settings: Annotated[
        str | None,
        typer.Option(help="JSON object with settings of the judge; null leaves a field out.", show_default=False),
    ] = None,
    judge_prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=FILE",
            help="What the judge is told, in place of our wording; KIND is class, same or caption.",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        bool, typer.Option("--metrics/--no-metrics", help="BLEU, ROUGE and the like for captions.")
    ] = True,
    sentence_encoder: Annotated[
        str, typer.Option(help="For cosines of Sentence-BERT.")
    ] = "sentence-transformers/all-mpnet-base-v2",
    simcse: Annotated[str, typer.Option(help="For cosines of SimCSE.")] = "princeton-nlp/sup-simcse-roberta-large",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps …; by default the fastest there is.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Governs answers that are drawn, and random classes.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Ask a model about clouds and have its answers judged, as published for PointLLM and MiniGPT-3D.

    Interrupted runs go on where they stopped. Answers are kept, so that another judge can look at them later.
    """
    with told_in_one_line():
        from hf_any3d.evaluation import PROTOCOLS, answer_protocols, find_protocol, judge_protocols
        from hf_any3d.evaluation.running import open_model

        protocols = [find_protocol(name) for name in dict.fromkeys(protocol or PROTOCOLS)]
        prompts = _prompts(judge_prompt or [])
        settings, further = _object("--generation", generation), _object("--options", options)
        own_judge = _object("--judge-settings", judge_settings)
        classes = _classes()
        quieten_libraries()
        with contextlib.redirect_stdout(sys.stderr):
            looks = _judge(
                judge, judge_model, judge_revision, judge_url, judge_key_variable, own_judge, device, classes
            )
            if model is not None:
                with opened(model):
                    generate, about = open_model(model, revision, device)
                load = _loader(data_dir, further, max_samples)
                answer_protocols(protocols, load, generate, output_dir, about, settings, batch_size, seed)
            encoders = {"sentence_encoder": sentence_encoder, "simcse": simcse} if metrics else None
            summary = judge_protocols(protocols, output_dir, looks, classes, prompts, encoders, seed)
    if as_json:
        say_json(summary)
        return
    for line in _table(summary):
        say(line)


def _object(option: str, text: str | None) -> dict[str, Any]:
    try:
        value = {} if text is None else json.loads(text)
    except ValueError as error:
        raise ValueError(f"{option} is {text!r}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f'{option} is {text!r}; expected a JSON object such as {{"num_beams": 1}}')
    return value


def _prompts(given: list[str]) -> dict[str, str]:
    from hf_any3d.evaluation.llm_judge.prompts import check_prompt
    from hf_any3d.evaluation.questions import KINDS

    prompts = {}
    for text in given:
        kind, _, file = text.partition("=")
        if kind not in KINDS or not file:
            raise ValueError(f"--judge-prompt is {text!r}; expected KIND=FILE with KIND one of {', '.join(KINDS)}")
        prompts[kind] = check_prompt(Path(file).read_text(encoding="utf-8"), kind)
    return prompts


def _classes() -> tuple[str, ...]:
    from hf_any3d.data.catalog.modelnet40_generative import BENCHMARK

    return BENCHMARK.class_names


def _judge(
    kind: JudgeKind | None,
    name: str | None,
    revision: str | None,
    url: str,
    key_variable: str,
    settings: dict[str, Any],
    device: str | None,
    classes: tuple[str, ...],
) -> Judge | None:
    from hf_any3d.evaluation import ClassNameJudge, EndpointJudge, LanguageModelJudge

    needs_name = kind in (JudgeKind.ENDPOINT, JudgeKind.LOCAL)
    if needs_name != (name is not None):
        raise ValueError(
            f"--judge-model is {name!r} and --judge is {kind.value if kind else None!r}; expected a model for the "
            "judges endpoint and local, and for them alone"
        )
    if kind is JudgeKind.ENDPOINT:
        return EndpointJudge(name, url, settings, key_variable)
    if kind is JudgeKind.LOCAL:
        return LanguageModelJudge(name, revision, settings, device)
    return ClassNameJudge(classes) if kind is JudgeKind.CLASS_NAMES else None


def _loader(data_dir: str | None, further: dict[str, Any], max_samples: int | None) -> Any:
    from hf_any3d.data import load_point_dataset

    def load(protocol: Any) -> Any:
        options = {**protocol.options, **further}
        rows = load_point_dataset(protocol.dataset, data_dir=data_dir, split="test", **options)
        return rows if max_samples is None else rows.select(range(min(max_samples, len(rows))))

    return load


def _table(summary: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for name, told in summary.items():
        revision = f" at {told['revision']}" if told["revision"] else ""
        lines.append(f"{name}: {told['answers']} answers of {told['model']}{revision}")
        if "figures" in told:
            shown = "   ".join(f"{key} {_number(value)}" for key, value in told["figures"].items())
            lines.append(f"  {shown}   judge {told['judge']['name']} ({', '.join(told['judge_revisions'])})")
        for metric, value in told.get("metrics", {}).items():
            if "not_available" in value:
                lines.append(f"  {metric}: {value['not_available']}")
            else:
                lines.append(f"  {metric} {_number(value['score'])}   {value['made_with']}")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)

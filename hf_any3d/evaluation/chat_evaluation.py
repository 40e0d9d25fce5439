"""Evaluate a model that answers questions: answers, verdicts and metrics of several protocols, in one folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_any3d.data.fingerprints import model_fingerprint
from hf_any3d.evaluation.caption_metrics import caption_metrics
from hf_any3d.evaluation.llm_judge import Judge
from hf_any3d.evaluation.llm_judge.verdicts import judge_answers, verdicts_path
from hf_any3d.evaluation.question_answering import (
    BATCH_SIZE,
    PROTOCOLS,
    Generate,
    Protocol,
    answer_question,
    read_results,
)
from hf_any3d.utils.atomic_files import Claim, claim, write_json
from hf_any3d.utils.devices import check_device

TASK, TEMPLATE = "point-cloud-text-to-text", "evaluation"


def open_model(name: str, revision: str | None = None, device: Any = None) -> tuple[Generate, dict[str, Any]]:
    """Open a model as a function that answers questions with the published prompt; with its name and revision."""
    from transformers import pipeline

    from hf_any3d.integration.registration import register

    # `pipeline` knows the task only then.
    register()
    check_device(device)
    open_task: Any = pipeline  # typed for tasks of transformers alone
    pipe = open_task(TASK, model=name, revision=revision, device=device)

    def generate(clouds: Sequence[np.ndarray], question: str, settings: Mapping[str, Any]) -> list[str]:
        # The caller has cut the clouds into batches.
        answers = pipe(list(clouds), text=question, chat_template=TEMPLATE, batch_size=len(clouds), **settings)
        return [texts[0]["generated_text"] for texts in answers]

    commit = getattr(pipe.model.config, "_commit_hash", None)
    return generate, {"model": name, "revision": commit or model_fingerprint(name)}


def answer_protocols(
    protocols: Sequence[Protocol],
    load_rows: Callable[[Protocol], Dataset],
    generate: Generate,
    output_dir: Path,
    about: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> None:
    """Ask a model the questions of protocols and write `{protocol}.json` in a folder; see `answer_question`."""
    for protocol in protocols:
        path = output_dir / f"{protocol.name}.json"
        with _claim(path):
            answer_question(load_rows(protocol), protocol, generate, path, about, settings, batch_size, seed)


def judge_protocols(
    protocols: Sequence[Protocol],
    output_dir: Path,
    judge: Judge | None,
    classes: Sequence[str],
    prompts: Mapping[str, str] | None = None,
    metrics: Mapping[str, str | None] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Judge the stored answers in a folder, without their model.

    Args:
        protocols: The protocols to judge.
        output_dir: Folder of the answers.
        judge: The judge; None computes metrics only.
        classes: Names of the classes, for protocols of kind "class".
        prompts: Prompts of the judge, by kind of protocol; by default `JUDGE_PROMPTS`.
        metrics: Encoders for `caption_metrics`; None leaves metrics out.
        seed: Random seed of classes that replace invalid verdicts.

    Returns:
        For each protocol `model`, `revision` and the number of `answers`; with a judge `judge`, `judge_revisions` and
        `figures`; with metrics, for captions, `metrics`. It is also written to `summary.json`, with a judge to
        `summary.judged-by-….json`, which keeps earlier results of other protocols.
    """
    # Before any answer is judged, as replies cost time and money
    if judge is not None and (unfit := [protocol.name for protocol in protocols if protocol.kind not in judge.kinds]):
        raise ValueError(f"judge {judge.name!r} cannot judge {', '.join(unfit)}; it judges {', '.join(judge.kinds)}")
    summary = {}
    for protocol in protocols:
        path = output_dir / f"{protocol.name}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no answers to {protocol.name}; give the model that is to make them")
        answers = read_results(path)
        # The summary says which model it is about, since verdicts are made without it.
        result = {key: answers.get(key) for key in ("model", "revision")} | {"answers": len(answers["results"])}
        if judge is not None:
            prompt = (prompts or {}).get(protocol.kind)
            verdicts = verdicts_path(path, judge)
            with _claim(verdicts):
                judged = judge_answers(answers, protocol.kind, judge, verdicts, classes, prompt=prompt, seed=seed)
            result |= {key: judged[key] for key in ("judge", "judge_revisions", "figures")}
        # Only captions are texts to compare answers with.
        if metrics is not None and protocol.kind == "caption":
            result["metrics"] = caption_metrics(answers["results"], **metrics)
        summary[protocol.name] = result
    path = output_dir / "summary.json"
    # Summaries of several judges stand side by side.
    path = path if judge is None else verdicts_path(path, judge)
    # Protocols that were judged before stay in the summary.
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {name: result for name, result in stored.items() if name in PROTOCOLS} | summary)
    return summary


def _claim(path: Path) -> Claim:
    """Keep other processes from writing the same file and discarding each other's results."""
    return claim(path.with_name(f".{path.name}.lock"), path)


def summary_lines(summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the summary of `judge_protocols` as lines for people."""
    lines = []
    for name, result in summary.items():
        revision = f" at {result['revision']}" if result["revision"] else ""
        lines.append(f"{name}: {result['answers']} answers of {result['model']}{revision}")
        # Without a judge there are metrics alone.
        if "figures" in result:
            shown = "   ".join(f"{key} {_number(value)}" for key, value in result["figures"].items())
            lines.append(f"  {shown}   judge {result['judge']['name']} ({', '.join(result['judge_revisions'])})")
        for metric, value in result.get("metrics", {}).items():
            # A metric whose package or model is missing says why.
            if "not_available" in value:
                lines.append(f"  {metric}: {value['not_available']}")
            else:
                lines.append(f"  {metric} {_number(value['score'])}   {value['made_with']}")
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)

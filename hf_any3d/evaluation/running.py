"""A whole evaluation: answers, verdicts and metrics of several protocols, in one folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_any3d.atomic_files import Claim, claim, write_json
from hf_any3d.evaluation.answering import BATCH_SIZE, Generate, answer_question, read_results
from hf_any3d.evaluation.caption_metrics import caption_metrics
from hf_any3d.evaluation.llm_judge import Judge
from hf_any3d.evaluation.llm_judge.judging import judge_answers, judged_name
from hf_any3d.evaluation.questions import PROTOCOLS, Protocol
from hf_any3d.modeling.pretrained_parts.sources import weights_checksum

TASK, TEMPLATE = "point-cloud-text-to-text", "evaluation"


def open_model(name: str, revision: str | None = None, device: Any = None) -> tuple[Generate, dict[str, Any]]:
    """Open a model as a function that answers questions with the published prompt, and say which one it is.

    Args:
        name: Directory or hub name.
        revision: Branch, tag or commit.
        device: Where it runs; the fastest place by default.

    Returns:
        The function, and `model` and `revision`: the commit, or the checksum of a directory's weights.

    Raises:
        OSError: It cannot be had.
    """
    from transformers import pipeline

    from hf_any3d.registration import register

    register()
    answer = pipeline(TASK, model=name, revision=revision, device=device)

    def generate(clouds: Sequence[np.ndarray], question: str, settings: Mapping[str, Any]) -> list[str]:
        told = answer(list(clouds), text=question, chat_template=TEMPLATE, batch_size=len(clouds), **settings)
        return [texts[0]["generated_text"] for texts in told]

    commit = getattr(answer.model.config, "_commit_hash", None)
    return generate, {"model": name, "revision": commit or weights_checksum(Path(name))}


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
    """Ask a model what the protocols ask; answers go to `{protocol}.json` in the folder. See `answer_question`.

    Raises:
        BlockingIOError: Another process is writing the same file.
    """
    for protocol in protocols:
        path = output_dir / f"{protocol.name}.json"
        with _alone(path):
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
    """Judge what a folder has answers to; no model is needed.

    Args:
        protocols: Those to judge.
        output_dir: The folder.
        judge: The judge; None only makes metrics.
        classes: Names of the classes of protocols that have some.
        prompts: What the judge is told, by kind of protocol; our own words by default.
        metrics: Encoders for `caption_metrics`; None leaves metrics out.
        seed: Governs the random class of an invalid verdict.

    Returns:
        For each protocol `model`, `revision` and `answers`, how many; with a judge `judge`, `judge_revisions` and
        `figures`; with metrics, for captions, `metrics`. Also written to `summary.json`, or beside it with the name
        of the judge, where earlier ones of other protocols stay.

    Raises:
        FileNotFoundError: There are no answers to a protocol.
        BlockingIOError: Another process is having the same judge look at them.
        ValueError: The judge cannot judge a protocol.
    """
    unfit = [protocol.name for protocol in protocols if judge is not None and protocol.kind not in judge.kinds]
    if unfit:
        raise ValueError(f"judge {judge.name!r} cannot judge {', '.join(unfit)}; it judges {', '.join(judge.kinds)}")
    summary = {}
    for protocol in protocols:
        path = output_dir / f"{protocol.name}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no answers to {protocol.name}; give the model that is to make them")
        answers = read_results(path)
        told = {key: answers.get(key) for key in ("model", "revision")} | {"answers": len(answers["results"])}
        if judge is not None:
            prompt = (prompts or {}).get(protocol.kind)
            judgements = judged_name(path, judge)
            with _alone(judgements):
                judged = judge_answers(answers, protocol.kind, judge, judgements, classes, prompt=prompt, seed=seed)
            told |= {key: judged[key] for key in ("judge", "judge_revisions", "figures")}
        if metrics is not None and protocol.kind == "caption":
            told["metrics"] = caption_metrics(answers["results"], **metrics)
        summary[protocol.name] = told
    name = output_dir / "summary.json"
    name = name if judge is None else judged_name(name, judge)
    write_json(name, _earlier(name) | summary)
    return summary


def _alone(path: Path) -> Claim:
    """Keep other processes from writing the same file; each would throw away what the other has been told."""
    return claim(path.with_name(f".{path.name}.lock"), path)


def _earlier(path: Path) -> dict[str, Any]:
    """Protocols of an earlier summary, whose datasets may lie elsewhere."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(stored, dict):
        raise ValueError(f"{path}: holds {type(stored).__name__}; expected an object with the names of protocols")
    return {name: told for name, told in stored.items() if name in PROTOCOLS}

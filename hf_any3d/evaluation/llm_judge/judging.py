"""Having a judge look at stored answers, now or later, with one judge or several."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_any3d.atomic_files import write_json
from hf_any3d.evaluation.answering import continued, read_results
from hf_any3d.evaluation.llm_judge.base import Judge
from hf_any3d.evaluation.llm_judge.prompts import JUDGE_PROMPTS, check_prompt, fill_prompt, prompt_checksum
from hf_any3d.evaluation.llm_judge.replies import INVALID, read_class, read_same, read_score, whole_text


def verdict_on(
    kind: str, reply: str, entry: Mapping[str, Any], classes: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """What a judge's reply says about one answer.

    An invalid class is replaced by a random one, which depends on the seed and the object alone: judging in another
    order, or in two goes, draws the same.

    Args:
        kind: Of the protocol.
        reply: What the judge wrote.
        entry: The answer, with `object_id` and `ground_truth`.
        classes: Names of the classes, for "class".
        seed: Governs random classes.

    Returns:
        `score`, `reason` and `is_valid`; for "class" also `class` and `class_name`.
    """
    if kind == "same":
        same = read_same(reply)
        return {"score": same.score, "reason": same.reason, "is_valid": same.verdict != INVALID}
    if kind == "caption":
        share = read_score(reply)
        return {"score": share.score, "reason": share.reason, "is_valid": share.score >= 0}
    found = read_class(reply, len(classes))
    number = found.number
    if number is None:
        number = random.Random(f"{seed} {entry['object_id']}").randrange(len(classes))
    return {
        "score": int(number == entry["ground_truth"]),
        "class": number,
        "class_name": classes[number],
        "reason": found.reason,
        "is_valid": found.number is not None,
    }


def figures(kind: str, verdicts: Sequence[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """The figures of a protocol, in percent; None where nothing is left to divide by.

    - "class": `accuracy`, correct answers of all, lucky ones among them; `clean_accuracy`, without the invalid ones,
      some of which (`lucky`) the random class made correct.
    - "same": `accuracy`, correct answers of the valid ones.
    - "caption": `score`, the mean over the valid ones.

    Each with `total` and `invalid`.

    Source: the published protocols of PointLLM and MiniGPT-3D.
    """
    valid = [verdict["score"] for verdict in verdicts if verdict["is_valid"]]
    counts: dict[str, float | int | None] = {"total": len(verdicts), "invalid": len(verdicts) - len(valid)}
    share = 100 * sum(valid) / len(valid) if valid else None
    if kind == "same":
        return {"accuracy": share, "correct": sum(valid), **counts}
    if kind == "caption":
        return {"score": sum(valid) / len(valid) if valid else None, **counts}
    correct = sum(verdict["score"] for verdict in verdicts)
    accuracy = 100 * correct / len(verdicts) if verdicts else None
    lucky = correct - sum(valid)
    return {"accuracy": accuracy, "clean_accuracy": share, "correct": correct, "lucky": lucky, **counts}


# Thousands of answers are a megabyte, which a judge without a network would write thousands of times.
SECONDS_BETWEEN_SAVES = 2.0


def judge_answers(
    answers: Mapping[str, Any],
    kind: str,
    judge: Judge,
    path: Path,
    classes: Sequence[str] | None = None,
    prompt: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Have a judge look at each answer and keep its verdicts in a file.

    The file is written every few seconds and whenever the work ends, however that is. Answers that the file has
    verdicts on are not judged again, unless they have changed.

    Args:
        answers: What `answer_question` returned, or `read_results` read.
        kind: Of the protocol: "class", "same" or "caption".
        judge: The judge.
        path: The file.
        classes: Names of the classes, for "class".
        prompt: What the judge is told, with the fields of `judge_prompts`; our own words by default.
        seed: Governs the random class of an invalid verdict.

    Returns:
        What the file holds: everything in `answers`, with `judge_reply` and the verdict in each result; `judge` with
        `name`, `settings`, `seed` and `prompt_sha256`; `judge_revisions`; and `figures`, once all are judged.

    Raises:
        ValueError: The judge cannot judge this kind, or the file is of other answers or another judge.
        JudgeError: The judge does not reply; the file keeps what it said before.
    """
    if kind not in judge.kinds:
        raise ValueError(f"judge {judge.name!r} cannot judge {kind!r}; it judges {', '.join(judge.kinds)}")
    if kind == "class" and not classes:
        raise ValueError("classes is empty; expected the names of the classes")
    about = {"name": judge.name, "settings": dict(judge.settings), "seed": seed}
    if judge.reads_prompt:
        prompt = check_prompt(JUDGE_PROMPTS[kind] if prompt is None else prompt, kind)
        about["prompt_sha256"] = prompt_checksum(prompt)
    header = {key: value for key, value in answers.items() if key != "results"}
    judged = {entry["object_id"]: entry for entry in continued(path, header | {"judge": about})}
    seen = set(_revisions(path)) if judged else set()
    known = [_known(judged.get(entry["object_id"]), entry) for entry in answers["results"]]
    waiting = [number for number, entry in enumerate(known) if entry is None]

    def reply_to(number: int) -> str:
        entry = answers["results"][number]
        if not judge.reads_prompt:
            return judge(entry["model_output"])
        return judge(fill_prompt(prompt, entry, list(classes or [])))

    def save(is_complete: bool) -> dict[str, Any]:
        results = [entry for entry in known if entry is not None]
        stored = {**header, "judge": about, "judge_revisions": sorted(seen | set(judge.revisions))}
        if is_complete:
            stored["figures"] = figures(kind, results)
        stored["results"] = results
        write_json(path, stored)
        return stored

    def ask_all(askers: ThreadPoolExecutor) -> None:
        saved = time.monotonic()
        for start in tqdm(range(0, len(waiting), judge.at_once), desc=f"judge {path.stem}", disable=not waiting):
            asked = [(number, askers.submit(reply_to, number)) for number in waiting[start : start + judge.at_once]]
            failure = None
            for number, reply in asked:
                try:
                    text = whole_text(reply.result())
                except Exception as error:  # the others' replies come first
                    failure = failure or error
                    continue
                entry = answers["results"][number]
                known[number] = {**entry, "judge_reply": text, **verdict_on(kind, text, entry, classes, seed)}
            if failure is not None:
                raise failure
            if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                save(is_complete=False)
                saved = time.monotonic()

    with ThreadPoolExecutor(judge.at_once) as askers:
        try:
            ask_all(askers)
        except BaseException:
            save(is_complete=False)
            raise
    return save(is_complete=True)


def judged_name(answers: Path, judge: Judge) -> Path:
    """Name of the file with a judge's verdicts, beside that of the answers."""
    slug = re.sub(r"[^\w.-]+", "-", judge.name).strip("-.") or "judge"
    return answers.with_name(f"{answers.stem}.judged-by-{slug}.json")


def _known(judged: Mapping[str, Any] | None, entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """An earlier verdict, where it is on the very answer."""
    is_same = judged is not None and all(judged.get(key) == value for key, value in entry.items())
    return dict(judged) if is_same else None


def _revisions(path: Path) -> list[str]:
    return read_results(path).get("judge_revisions", [])

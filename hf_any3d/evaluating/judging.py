"""Having a judge look at stored answers, now or later, with one judge or several."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_any3d.evaluating.counting import figures, verdict_on
from hf_any3d.evaluating.judge_prompts import JUDGE_PROMPTS, check_prompt, fill_prompt, prompt_checksum
from hf_any3d.evaluating.judges.base import Judge
from hf_any3d.evaluating.replies import whole_text
from hf_any3d.evaluating.result_files import continued, read_results
from hf_any3d.whole_files import write_json

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

"""Have a judge read stored answers, turn its replies into verdicts, and verdicts into figures."""

from __future__ import annotations

import hashlib
import random
import re
import string
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from hf_any3d.evaluation.llm_judge.judges import Judge, replace_lone_surrogates
from hf_any3d.evaluation.question_answering import read_earlier_results, read_results
from hf_any3d.utils.atomic_files import write_json
from hf_any3d.utils.progress import progress_bar

JUDGE_PROMPTS = {
    "same": """Two sentences describe 3D objects. Decide whether they speak of the same kind of object. Only what the \
object is counts: leave aside its color, size, shape, material and style.
Reply with T if both speak of the same kind of object and with F if they do not, then a # and your reason in at most \
20 words. Write nothing before the letter.

Examples
1. A cartoon-like white and yellow duck.
2. This is a small rubber duck for the bath.
Reply: T#both are ducks
1. An old wooden barrel.
2. The model shows a tall green cactus in a pot.
Reply: F#a barrel is no cactus

Your turn
1. {ground_truth}
2. {model_output}
Reply: """,
    "class": """A model was asked what a 3D object is. Find out which of the following classes its answer means:
{classes}

Reply in one line with the number of the class, a #, the name of the class, a #, and your reason in at most 20 words, \
in the form number#class#reason. Go by what kind of object the answer speaks of, and leave aside color, size and \
style. If it names none of the classes, choose the one that its object comes closest to. If the answer gives no hint \
at all, reply -1#NA#reason.

Examples
Answer: a small jet with two engines
Reply: 0#airplane#a jet is an airplane
Answer: this is an object
Reply: -1#NA#the answer does not say what it is

Your turn
Answer: {model_output}
Reply: """,
    "caption": """A person and a model have each described the same 3D object. List the aspects that the person \
mentions, such as what it is, its parts, colors, materials and purpose. Then find the share of them that the model \
mentions correctly or in part; other words for the same thing count as the same, and what the model says beyond them \
does not count.
Reply in one line with that share from 0 to 100, a #, and your reason in at most 30 words, in the form score#reason. \
Write nothing before the score.

Example
Person: A white van with red stripes.
Model: this is a 3d model of a white vehicle, perhaps a van, on four wheels.
Reply: 66#van and white are mentioned, the red stripes are not

Your turn
Person: {ground_truth}
Model: {model_output}
Reply: """,
}
"""The default prompt for each kind of protocol."""


def _fields(prompt: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None}


def check_prompt(prompt: str, kind: str) -> str:
    """Return a prompt if it has exactly the fields of its kind; a judge would answer without the missing ones too."""
    fields = _fields(prompt)
    expected = _fields(JUDGE_PROMPTS[kind])
    if fields != expected:
        raise ValueError(f"judge prompt has fields {sorted(fields)}; expected {sorted(expected)}")
    return prompt


def prompt_checksum(prompt: str) -> str:
    """Return `sha256:…` of a prompt or list, which distinguishes results of different wordings."""
    return f"sha256:{hashlib.sha256(prompt.encode()).hexdigest()}"


INVALID = "INVALID"
# Only the first digit of a number starts a match; otherwise a reply of a million digits would take hours.
_CLASS = re.compile(r"(?<!\d)\d+#[^#]*#.*")
_SCORE = re.compile(r"(?<!\d)\d*#.*")
# The file can have megabytes, which a fast judge would write thousands of times.
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
    """Have a judge read each answer and keep its verdicts in a file.

    The file is written every few seconds and at the end, also after an error or an interruption. Answers with a
    verdict in the file are not judged again, unless they have changed.

    Args:
        answers: The result of `answer_question` or `read_results`.
        kind: Kind of the protocol: "class", "same" or "caption".
        judge: The judge.
        path: The file.
        classes: Names of the classes, for "class".
        prompt: The judge's prompt, with the fields of the one in `JUDGE_PROMPTS`, which is the default.
        seed: Random seed of classes that replace invalid verdicts.

    Returns:
        The content of the file: everything in `answers`, with `judge_reply` and the verdict in each result; `judge`
        with `name`, `settings`, `seed`, `prompt_sha256` and, for "class", `classes_sha256`; `judge_revisions`; and
        `figures`, once all are judged.
    """
    if kind not in judge.kinds:
        raise ValueError(f"judge {judge.name!r} cannot judge {kind!r}; it judges {', '.join(judge.kinds)}")
    classes = classes or ()
    # Judges without prompts get the bare answer.
    template = None
    if judge.reads_prompt:
        template = check_prompt(JUDGE_PROMPTS[kind] if prompt is None else prompt, kind)
    entries = answers["results"]
    header = {key: value for key, value in answers.items() if key != "results"}
    # Everything that changes verdicts about the same answers
    description = {"name": judge.name, "settings": dict(judge.settings), "seed": seed}
    if template is not None:
        description["prompt_sha256"] = prompt_checksum(template)
    if kind == "class":
        description["classes_sha256"] = prompt_checksum("\n".join(classes))
    header["judge"] = description
    # Earlier verdicts stay, and None stands for those to come.
    judged, revisions = _earlier_verdicts(path, header, entries)

    def judge_one(number: int) -> None:
        entry = entries[number]
        # Judges without a prompt are shown the answer itself.
        text = entry["model_output"]
        if template is not None:
            numbered = "\n".join(f"{label}: {name}" for label, name in enumerate(classes))
            # As the published programs: an empty answer is shown as a mark.
            text = template.format_map({**entry, "model_output": text or "##", "classes": numbered})
        # A reply may hold characters that no file can store.
        reply = replace_lone_surrogates(judge(text))
        judged[number] = {**entry, "judge_reply": reply, **read_verdict(kind, reply, entry, classes, seed)}

    def save(is_complete: bool) -> dict[str, Any]:
        # In the order of the answers, whichever reply came first
        verdicts = [verdict for verdict in judged if verdict is not None]
        # Earlier verdicts are kept, and so are the revisions that gave them.
        stored = {**header, "judge_revisions": sorted(revisions | set(judge.revisions))}
        # Figures of some answers could be taken for those of all.
        if is_complete:
            stored["figures"] = compute_figures(kind, verdicts)
        stored["results"] = verdicts
        write_json(path, stored)
        return stored

    waiting = [number for number, verdict in enumerate(judged) if verdict is None]
    last_save = time.monotonic()
    with ThreadPoolExecutor(judge.at_once) as threads:
        try:
            for start in progress_bar(
                range(0, len(waiting), judge.at_once), hidden=not waiting, desc=f"judge {path.stem}"
            ):
                # In batches, so that what is there is saved now and then, and an error ends the run soon
                batch = [threads.submit(judge_one, number) for number in waiting[start : start + judge.at_once]]
                wait(batch)  # all replies, which cost money, are kept, whichever of them fails
                for verdict in batch:
                    verdict.result()
                if time.monotonic() - last_save > SECONDS_BETWEEN_SAVES:
                    save(is_complete=False)
                    last_save = time.monotonic()
        # An interruption, too, must not lose replies.
        except BaseException:
            save(is_complete=False)
            raise
    return save(is_complete=True)


def _earlier_verdicts(
    path: Path, header: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any] | None], set[str]]:
    """Return the verdict about each answer that is in the file already, or None, and the revisions that gave them."""
    earlier = {verdict["object_id"]: verdict for verdict in read_earlier_results(path, header)}
    verdicts: list[dict[str, Any] | None] = []
    for entry in entries:
        verdict = earlier.get(entry["object_id"])
        # Earlier verdicts about other answers do not count.
        if verdict is not None and any(verdict.get(key) != value for key, value in entry.items()):
            verdict = None
        verdicts.append(verdict)
    revisions = set(read_results(path).get("judge_revisions", [])) if earlier else set()
    return verdicts, revisions


def verdicts_path(answers: Path, judge: Judge) -> Path:
    """Return the file for a judge's verdicts, next to that of the answers."""
    # Names of models may have slashes and other characters that file names lack.
    slug = re.sub(r"[^\w.-]+", "-", judge.name).strip("-.") or "judge"
    return answers.with_name(f"{answers.stem}.judged-by-{slug}.json")


def compute_figures(kind: str, verdicts: Sequence[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """Compute the figures of a protocol in percent; None if there is nothing to divide by.

    - "class": `accuracy`, the share of correct answers, including invalid ones that the random class made correct
      (`lucky`); `clean_accuracy`, the share among the valid ones.
    - "same": `accuracy`, the share of correct answers among the valid ones.
    - "caption": `score`, the mean over the valid ones.

    All have `total` and `invalid`.

    Source: the published protocols of PointLLM and MiniGPT-3D.
    """
    # An invalid reply says something about the judge, not about the model.
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


def read_verdict(
    kind: str, reply: str, entry: Mapping[str, Any], classes: Sequence[str] = (), seed: int = 0
) -> dict[str, Any]:
    """Turn a judge's reply about one answer into a verdict.

    An invalid class is replaced by a random one that depends only on the seed and the object, not on the order of
    judging.

    Returns:
        `score`, `reason` and `is_valid`; for "class" also `class` and `class_name`.
    """
    if kind == "same":
        score, letter, reason = read_same(reply)
        return {"score": score, "reason": reason, "is_valid": letter != INVALID}
    if kind == "caption":
        score, reason = read_score(reply)
        return {"score": score, "reason": reason, "is_valid": score >= 0}
    number, _, reason = read_class(reply, len(classes))
    is_valid = number is not None
    if number is None:
        # As in the published evaluation, an answer without a class gets a random one; here the same in each run.
        number = random.Random(f"{seed} {entry['object_id']}").randrange(len(classes))
    return {
        "score": int(number == entry["ground_truth"]),
        "class": number,
        "class_name": classes[number],
        "reason": reason,
        "is_valid": is_valid,
    }


def read_same(reply: str) -> tuple[int, str, str]:
    """Read `T#reason` or `F#reason`: 1 or 0, "T", "F" or "INVALID", and the reason, or an invalid reply."""
    reply = reply.lstrip()
    letter = reply[:1].upper()
    if letter not in ("T", "F"):
        return 0, INVALID, reply
    # Without the letter and the # after it.
    return int(letter == "T"), letter, reply[2:]


def read_class(reply: str, num_classes: int) -> tuple[int | None, str, str]:
    """Read the first `number#class#reason`; a class "NA" or a number that is none of them is None and "INVALID"."""
    match = _CLASS.search(reply)
    if match is None:
        return None, INVALID, reply.strip()
    # What a further # separates from the reason is left out.
    number, label, reason = (part.strip() for part in match.group().split("#")[:3])
    # The length is checked first, since Python refuses to parse numbers of thousands of digits.
    if len(number) > 9 or int(number) >= num_classes or label == "NA":
        return None, INVALID, match.group().strip()
    return int(number), label, reason


def read_score(reply: str) -> tuple[int, str]:
    """Read the first `score#reason` in a reply; a score that is not 0 to 100 is -1, with the invalid reply."""
    match = _SCORE.search(reply)
    if match is None:
        return -1, reply.strip()
    score, reason = (part.strip() for part in match.group().split("#")[:2])
    if not score or len(score) > 9 or int(score) > 100:
        return -1, match.group().strip()
    return int(score), reason

"""Ask a MiniGPT-3D the published questions and have its answers judged, as the last step of a published table.

python -m examples.repeat.table_questions --model outputs/stage4 --protocols modelnet40-instruction --judge class-names
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from examples.repeat.untrained_report import save_untrained_report
from hf_any3d.data import load_point_dataset
from hf_any3d.data.catalog.modelnet40_generative import DATASET
from hf_any3d.evaluation.chat_evaluation import answer_protocols, judge_protocols, open_model
from hf_any3d.evaluation.llm_judge import ClassNameJudge, EndpointJudge, Judge, LanguageModelJudge
from hf_any3d.evaluation.question_answering import Protocol, find_protocol
from hf_any3d.model_card.run_report import RunReport, Stopwatch
from hf_any3d.training.arguments import argument, json_mapping
from hf_any3d.training.program import run_program
from hf_any3d.training.requests import parse_arguments

logger = logging.getLogger(__name__)

JUDGES = ("class-names", "metrics", "fixed")
"""Judges that are no language models."""
FIXED_REPLIES = {"class": "0#airplane#always", "same": "T#always", "caption": "50#always"}
"""What the judge of dry runs replies to each kind of question, whatever the answer is."""


@dataclass
class QuestionArguments:
    """The model, the questions, and who judges its answers."""

    model: str = argument(help="Directory or hub name of a MiniGPT-3D.")
    output_dir: str = argument(help="Folder for answers, verdicts and metrics.json.")
    protocols: list[str] = argument(help="Names of the published protocols, such as objaverse-caption.")
    judges: list[str] = argument(
        default_factory=lambda: ["class-names"],
        help="For each protocol, or for all: class-names, metrics for none, fixed, local:NAME for a language model, "
        "or the name of a model at the endpoint.",
    )
    judge_url: str = argument("https://api.openai.com/v1", help="Base address of the endpoint.")
    judge_key_variable: str = argument("OPENAI_API_KEY", help="Variable with the endpoint's key.")
    sentence_encoder: str | None = argument(
        "sentence-transformers/all-mpnet-base-v2", help="Model for cosines of Sentence-BERT."
    )
    simcse: str | None = argument("princeton-nlp/sup-simcse-roberta-large", help="Model for cosines of SimCSE.")
    data_dir: str | None = argument(None, help="Directory with the files of the datasets.")
    dataset_options: dict | str | None = argument(None, help="JSON object with further options of the datasets.")
    generation: dict | str | None = argument(None, help="JSON object with settings of generation.")
    max_samples: int | None = argument(None, help="Ask about this many clouds at most.")
    seed: int = field(default=0)

    def __post_init__(self):
        self.dataset_options = json_mapping(self.dataset_options, "dataset_options")
        self.generation = json_mapping(self.generation, "generation")
        if len(self.judges) not in (1, len(self.protocols)):
            raise ValueError(f"--judges names {len(self.judges)}; expected 1 or {len(self.protocols)}, as --protocols")

    @property
    def judged(self) -> dict[str, list[str]]:
        """The protocols of each judge."""
        judges = self.judges * len(self.protocols) if len(self.judges) == 1 else self.judges
        groups: dict[str, list[str]] = {}
        for protocol, judge in zip(self.protocols, judges, strict=True):
            groups.setdefault(judge, []).append(protocol)
        return groups


class FixedJudge:
    """Replies the same to every answer, for dry runs."""

    name = "fixed replies"
    settings: Mapping[str, Any] = {}
    reads_prompt = False
    at_once = 1

    def __init__(self, kind: str):
        self.kinds: Collection[str] = (kind,)
        self.revisions = {"1"}
        self.reply = FIXED_REPLIES[kind]

    def __call__(self, text: str) -> str:
        """Return the reply."""
        return self.reply


def open_judge(name: str, arguments: QuestionArguments, kind: str) -> Judge | None:
    """Open a judge by its name, see `QuestionArguments.judges`."""
    if name == "metrics":
        return None
    if name == "class-names":
        return ClassNameJudge(DATASET.class_names)
    if name == "fixed":
        return FixedJudge(kind)
    if name.startswith("local:"):
        return LanguageModelJudge(name.removeprefix("local:"))
    return EndpointJudge(name, arguments.judge_url, None, arguments.judge_key_variable)


def load_rows(protocol: Protocol, arguments: QuestionArguments) -> Dataset:
    """Load the clouds of a protocol."""
    assert isinstance(arguments.dataset_options, dict)
    options = {**protocol.options, **arguments.dataset_options}
    rows = load_point_dataset(protocol.dataset, data_dir=arguments.data_dir, split="test", **options)
    return rows if arguments.max_samples is None else rows.select(range(min(arguments.max_samples, len(rows))))


def figures_of(summary: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the figures of protocols, in percent, by the names of protocols and metrics, and their mean."""
    figures: dict[str, float] = {}
    for name, result in summary.items():
        judged = result.get("figures", {})
        score = judged.get("accuracy", judged.get("score"))
        if score is not None:
            figures[name] = score
        for metric, value in result.get("metrics", {}).items():
            if value.get("score") is not None:
                figures[metric] = value["score"]
    shares = [figures[name] for name in summary if name in figures]
    if len(shares) == len(summary):
        figures["average"] = sum(shares) / len(shares)
    return figures


def main(argv: list[str] | None = None) -> RunReport:
    """Ask, judge, and write metrics.json."""
    (arguments,) = parse_arguments((QuestionArguments,), sys.argv[1:] if argv is None else argv)
    stopwatch, folder = Stopwatch(), Path(arguments.output_dir)
    protocols = {name: find_protocol(name) for name in arguments.protocols}
    with stopwatch.part("answers"):
        generate, about = open_model(arguments.model)
        answer_protocols(
            list(protocols.values()),
            lambda protocol: load_rows(protocol, arguments),
            generate,
            folder,
            about,
            arguments.generation,
            seed=arguments.seed,
        )
    encoders = {"sentence_encoder": arguments.sentence_encoder, "simcse": arguments.simcse}
    summary: dict[str, dict[str, Any]] = {}
    with stopwatch.part("verdicts"):
        for judge, names in arguments.judged.items():
            for name in names:
                opened = open_judge(judge, arguments, protocols[name].kind)
                metrics = encoders if judge == "metrics" or protocols[name].kind == "caption" else None
                summary |= judge_protocols(
                    [protocols[name]], folder, opened, DATASET.class_names, None, metrics, arguments.seed
                )
    return save_untrained_report(
        folder,
        stopwatch,
        model=arguments.model,
        seed=arguments.seed,
        data={"name": ", ".join(arguments.protocols), "judges": arguments.judges},
        metrics={"test": figures_of({name: summary[name] for name in arguments.protocols})},
    )


if __name__ == "__main__":
    run_program(main)

"""Time captions, conversations and training steps of MiniGPT-3D with random weights.

    python -m studies.speed.chat --preset small --output chat.json

Sides of a comparison take turns in one process. Processor times of this process depend little on other work on the
machine; "times" is a side's processor time relative to the first side in the same round, as median over rounds.
Training steps run in separate processes, to measure their memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Pipeline

from hf_any3d import ChatSession
from hf_any3d.tasks.chat.generation import AnswerStreamer
from hf_any3d.utils.atomic_files import write_json
from studies.speed._chat_model import PRESETS, QUESTION, build_pipeline, random_clouds
from studies.speed._measure import Spent, timed

KINDS = ("batches", "parts", "tokens", "turns", "training")
FOLLOW_UPS = ("What color is it?", "What is it made of?", "Who would use it, and where?")


@dataclass
class Comparison:
    """Sides to compare.

    Attributes:
        title: What the sides do.
        sides: Function of each side, by name.
        prepare: Functions to call before a side, by the same names; not timed, the result is the side's argument.
        tokens: Tokens that a side generates.
    """

    title: str
    sides: dict[str, Callable[[Any], Any]]
    prepare: dict[str, Callable[[], Any]] = field(default_factory=dict)
    tokens: int | None = None

    def run(self, name: str) -> Any:
        """Prepare and call a side."""
        return self.sides[name](self.prepare[name]() if name in self.prepare else None)

    def measure(self, rounds: int) -> list[dict[str, Any]]:
        """Time the sides in turns."""
        spent: dict[str, list[Spent]] = {name: [] for name in self.sides}
        for number in range(rounds + 1):  # the first round warms up
            for name, side in self.sides.items():
                given = self.prepare[name]() if name in self.prepare else None
                spent[name] += [timed(lambda side=side, given=given: side(given))] * (number > 0)
        first = next(iter(spent.values()))
        rows = []
        for name, own in spent.items():
            times = [one.cpu / other.cpu for one, other in zip(own, first, strict=True)]
            row = {"comparison": self.title, "side": name, "wall_s": statistics.median(one.wall for one in own)}
            row |= {"cpu_s": statistics.median(one.cpu for one in own), "times": statistics.median(times)}
            rows.append(row | ({} if self.tokens is None else {"tokens_per_cpu_s": self.tokens / row["cpu_s"]}))
        return rows


class Chats:
    """The comparisons with one pipeline.

    Args:
        pipe: The pipeline.
        batch: Clouds per batch.
        new_tokens: Tokens of each answer.
    """

    def __init__(self, pipe: Pipeline, batch: int, new_tokens: int):
        self.pipe, self.new_tokens = pipe, new_tokens
        self.clouds = random_clouds(batch, pipe.processor.feature_extractor.num_points)
        self.settings = self.exactly(new_tokens)
        self.prompts = pipe.processor.prompts([[self.question(cloud)] for cloud in self.clouds])

    @staticmethod
    def exactly(tokens: int) -> dict[str, Any]:
        """Return settings for answers of exactly that many tokens."""
        return {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False}

    @staticmethod
    def question(cloud: Any) -> dict[str, Any]:
        """Build the first message of a conversation."""
        content = [{"type": "point_cloud", "point_cloud": cloud}, {"type": "text", "text": QUESTION}]
        return {"role": "user", "content": content}

    def batches(self) -> Comparison:
        """Compare captions of several clouds one by one and in a batch, without cached clouds."""

        def loop(_: Any) -> Any:
            return [self.pipe(cloud, text=QUESTION, **self.settings) for cloud in self.clouds]

        def together(_: Any) -> Any:
            return self.pipe(self.clouds, text=QUESTION, batch_size=len(self.clouds), **self.settings)

        sides = {"one by one": loop, "in one batch": together}
        prepare, count = dict.fromkeys(sides, self.pipe.answerer.forget), len(self.clouds)
        return Comparison(f"captions of {count} clouds", sides, prepare, count * self.new_tokens)

    @torch.no_grad()
    def parts(self) -> Comparison:
        """Compare the parts of the model in one caption."""
        model, prompt = self.pipe.model, self.prompts[0]
        points = torch.from_numpy(prompt.points[0])[None]
        seen = model.encode(points)
        features = model.bridge(seen).tokens
        sides = {
            "whole caption": lambda _: self.pipe(self.clouds[0], text=QUESTION, **self.settings),
            "point encoder": lambda _: model.encode(points),
            "bridge": lambda _: model.bridge(seen),
            "language model": lambda _: self.pipe.answerer.generate([prompt], self.settings, features),
        }
        sides = {name: torch.no_grad()(side) for name, side in sides.items()}
        return Comparison("parts of one caption", sides, {"whole caption": self.pipe.answerer.forget})

    @torch.no_grad()
    def tokens(self, batch: int) -> Comparison:
        """Compare answers about clouds with the bare language model on as many tokens of text."""
        model, processor = self.pipe.model, self.pipe.processor
        prompts = self.prompts[:batch]
        features = model.get_point_features(torch.stack([torch.from_numpy(one.points[0]) for one in prompts]))
        settings = self.pipe.generate_settings(dict(self.settings))
        bare = model.language_model
        ids = torch.randint(processor.point_token_id, (batch, len(prompts[0].input_ids)))
        text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        # Both use the same generation config.
        bare.generation_config = model.generation_config

        def about(**further: Any) -> torch.Tensor:
            return self.pipe.answerer.generate(prompts, settings | further, features)

        def streamed(_: Any) -> torch.Tensor:
            return about(streamer=AnswerStreamer(processor.tokenizer, processor.end_mark))

        sides = {"bare language model": lambda _: bare.generate(**text, **settings), "about clouds": lambda _: about()}
        sides |= {"about clouds, streamed": streamed} if batch == 1 else {}
        return Comparison(f"{batch} answers, {ids.shape[1]} tokens read", sides, tokens=batch * self.new_tokens)

    def turns(self, last: int) -> Comparison:
        """Compare the last turn of a conversation by what is cached of it."""
        messages = [*self.session_of_three().messages, {"role": "user", "content": FOLLOW_UPS[-1]}]
        ending = self.exactly(last)

        def cloud_cached(_: Any) -> str:
            return self.pipe(messages, **ending)[0]["generated_text"][-1]["content"]

        def nothing_cached(_: Any) -> str:
            self.pipe.answerer.forget()
            return cloud_cached(None)

        sides = {
            "nothing cached": nothing_cached,
            "cloud cached": cloud_cached,
            "session": lambda session: session.ask(FOLLOW_UPS[-1], **ending),
        }
        read = len(self.pipe.processor.prompts([messages], read=False)[0].input_ids)
        words = "the first token" if last == 1 else f"{last} tokens"
        title = f"fourth answer, {read} tokens before it, {words}"
        return Comparison(title, sides, {"session": self.session_of_three}, last)

    def session_of_three(self) -> ChatSession:
        """Hold a conversation with three answers."""
        session = ChatSession(self.pipe, self.clouds[0], **self.settings)
        for text in (QUESTION, *FOLLOW_UPS[:-1]):
            session.ask(text)
        return session

    def comparisons(self, kinds: Sequence[str]) -> list[Comparison]:
        """Build the comparisons of some of `KINDS`."""
        sizes = dict.fromkeys((1, len(self.clouds)))
        makers: dict[str, Callable[[], list[Comparison]]] = {
            "batches": lambda: [self.batches()],
            "parts": lambda: [self.parts()],
            "tokens": lambda: [self.tokens(size) for size in sizes],
            "turns": lambda: [self.turns(self.new_tokens), self.turns(1)],
        }
        return [comparison for kind in kinds if kind in makers for comparison in makers[kind]()]


def chat_rows(preset: str, kinds: Sequence[str], batch: int, new_tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Measure every side of the comparisons in this process."""
    chats = Chats(build_pipeline(preset), batch, new_tokens)
    return [row for comparison in chats.comparisons(kinds) for row in comparison.measure(rounds)]


def training_rows(preset: str, batch: int, threads: int) -> list[dict[str, Any]]:
    """Measure a training step with and without checkpointing, each in a new process."""
    program = [sys.executable, "-m", "studies.speed._chat_training"]
    program += ["--preset", preset, "--batch", str(batch), "--threads", str(threads)]
    rows = []
    for options in ([], ["--checkpointing"]):
        done = subprocess.run([*program, *options], check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def table(result: dict[str, Any]) -> str:
    """Format as Markdown."""
    lines = ["| | | wall s | CPU s | times | tokens / CPU s |", "|---|---|---|---|---|---|"]
    for row in result["rows"]:
        speed = f"{row['tokens_per_cpu_s']:.1f}" if "tokens_per_cpu_s" in row else "–"
        figures = f"{row['wall_s']:.3f} | {row['cpu_s']:.3f} | {row['times']:.3f} | {speed}"
        lines.append(f"| {row['comparison']} | {row['side']} | {figures} |")
    if not result["training"]:
        return "\n".join(lines)
    lines += ["", "| training step | saved MB | peak MB | weights MB | CPU s |", "|---|---|---|---|---|"]
    for row in result["training"]:
        figures = " | ".join(f"{row[key]:.1f}" for key in ("saved_MB", "peak_MB", "weights_MB", "cpu_s"))
        lines.append(f"| {'checkpointed' if row['checkpointing'] else 'plain'} | {figures} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Time the chat model and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="what to measure; all by default")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    transformers.logging.set_verbosity_error()
    result = {key: value for key, value in vars(chosen).items() if key != "output"}
    result |= {"torch": torch.__version__, "transformers": transformers.__version__}
    result |= {"machine": platform.machine(), "load": os.getloadavg()[0]}
    result["rows"] = chat_rows(chosen.preset, chosen.only, chosen.batch, chosen.new_tokens, chosen.rounds)
    training = "training" in chosen.only
    result["training"] = training_rows(chosen.preset, chosen.batch, chosen.threads) if training else []
    print(table(result))
    if chosen.output is not None:
        write_json(chosen.output, result)


if __name__ == "__main__":
    main()

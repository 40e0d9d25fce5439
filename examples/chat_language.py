"""A tokenizer and a small language model made from what is said about the training shapes, without their clouds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from shape_conversations import BRIEF_QUESTIONS, Conversation, annotation
from shape_facts import ShapeFacts
from shape_tree import conversations_about
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import trange
from transformers import PreTrainedTokenizerFast, set_seed

from hf_any3d import MiniGPT3DProcessor, PointCloudProcessor
from hf_any3d.chat import END_MARK, Prompt, training_messages
from hf_any3d.modeling.minigpt3d import NormedPhiConfig, NormedPhiForCausalLM

START = "<|endoftext|>"
TEMPLATES = ("training", "evaluation", "demo")

LANGUAGE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "resid_pdrop": 0.1,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
}
"""For `NormedPhiConfig`."""

TRAINING: dict[str, Any] = {"vocabulary": 600, "steps": 400, "batch_size": 32, "learning_rate": 3e-3}


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with merges, such as Phi's; one token is start, end and padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=sorted(alphabet), special_tokens=[START], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=START, pad_token=START)


def mixed_facts(facts: Sequence[ShapeFacts], random: Random) -> ShapeFacts:
    """A shape that need not exist: class, colours and proportions each of another training shape."""
    label, colors, proportion = (random.choice(facts) for _ in range(3))
    return replace(colors, label=label.label, proportion=proportion.proportion)


def said(facts: Sequence[ShapeFacts], seed: int) -> Iterator[tuple[ShapeFacts, Conversation]]:
    """Endless conversations about shapes that are put together from the facts of others."""
    random = Random(seed)
    while True:
        one = mixed_facts(facts, random)
        yield one, random.choice(conversations_about(one, random))


class WordsForClouds:
    """Prompts in which the places of clouds are empty, or hold words that describe the shape.

    Phi-2 has read enough to answer by what stands before a question. A model this small learns that here.

    Args:
        processor: Makes prompts.
        facts: Of the training shapes.
        seed: Governs what is said.
    """

    def __init__(self, processor: MiniGPT3DProcessor, facts: Sequence[ShapeFacts], seed: int):
        self.processor, self.random = processor, Random(seed)
        self.said = said(facts, seed)

    def batch(self, size: int) -> dict[str, torch.Tensor]:
        """Token ids, mask and labels, the ids of answers and -100 elsewhere, `(size, tokens)` each."""
        return dict(self.processor.pad([self._row() for _ in range(size)], padding_side="right", return_labels=True))

    def _row(self) -> Prompt:
        facts, conversation = next(self.said)
        messages = training_messages(annotation("a", conversation)["conversations"])
        template = self.random.choice(TEMPLATES) if len(messages) == 2 else "training"
        (whole,) = self.processor.prompts([messages[:1]], template, read=False)
        *_, answer = messages[1]["content"]
        if template == "training":
            (whole,) = self.processor.prompts([messages], template, read=False, for_training=True)
        else:
            whole.add(self._ids(answer["text"] + END_MARK), is_answer=True)
        place = whole.input_ids.index(self.processor.point_token_id)
        prompt = Prompt()
        prompt.add(whole.input_ids[:place])
        prompt.add(self._ids(self._description(facts)))
        prompt.input_ids += whole.input_ids[place + 1 :]
        prompt.attention_mask += whole.attention_mask[place + 1 :]
        prompt.labels += whole.labels[place + 1 :]
        return prompt

    def _ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _description(self, facts: ShapeFacts) -> str:
        if self.random.random() < 0.2:
            return ""
        words = [
            facts.label, facts.proportion, " ".join(f"{part.color} {round(10 * part.share)}" for part in facts.parts),
            f"upper {facts.upper}", f"lower {facts.lower}",
        ]  # fmt: skip
        self.random.shuffle(words)
        return " ".join(words)


def texts_for_tokenizer(facts: Sequence[ShapeFacts], seed: int, count: int = 2000) -> list[str]:
    """Questions, answers and marks of prompts, as they are and in small letters."""
    texts = [f"[INST] <PC></PC> [/INST]{END_MARK}", "<s>[INST] ", *BRIEF_QUESTIONS]
    for _, conversation in islice(said(facts, seed), count):
        texts += [text for turn in conversation.turns for text in turn]
    return texts + [text.lower() for text in texts]


def train_language(facts: Sequence[ShapeFacts], seed: int, folder: Path, **changes: Any) -> dict[str, Any]:
    """Make tokenizer and language model, and save both.

    Args:
        facts: Of the training shapes.
        seed: Of weights and of what is said.
        folder: Where both are saved.
        **changes: Of `TRAINING` and `LANGUAGE`.
    """
    training = {name: changes.pop(name, value) for name, value in TRAINING.items()}
    tokenizer = train_tokenizer(texts_for_tokenizer(facts, seed), training["vocabulary"])
    set_seed(seed)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = NormedPhiForCausalLM(NormedPhiConfig(vocab_size=len(tokenizer), **ids, **{**LANGUAGE, **changes}))
    processor = MiniGPT3DProcessor(PointCloudProcessor(), tokenizer, num_query_tokens=1, point_token_id=len(tokenizer))
    words = WordsForClouds(processor, facts, seed)
    rate = training["learning_rate"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=training["steps"], pct_start=0.1)
    losses = []
    for _ in trange(training["steps"], desc="language model"):
        loss = model(**words.batch(training["batch_size"])).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "loss": sum(losses[-50:]) / len(losses[-50:]),
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
    }

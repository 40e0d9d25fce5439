"""Train a tokenizer and a small language model on conversations about the training shapes, without their clouds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import trange
from transformers import PreTrainedTokenizerFast, set_seed

from hf_any3d import MiniGPT3DProcessor, PointCloudProcessor
from hf_any3d.chat import END_MARK, Prompt, training_messages
from hf_any3d.modeling.minigpt3d import NormedPhiConfig, NormedPhiForCausalLM
from studies.shape_conversations import BRIEF_QUESTIONS, Conversation, annotation, conversations_about
from studies.shape_facts import COLORS, PROPORTIONS, ShapeFacts

START = "<|endoftext|>"
TEMPLATES = ("training", "evaluation", "demo")

LANGUAGE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "resid_pdrop": 0.0,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
}
"""For `NormedPhiConfig`."""

WITHOUT_WORDS = 0.2
"""Share of the conversations with nothing in place of the cloud."""
TRAINING: dict[str, Any] = {"vocabulary": 600, "steps": 900, "batch_size": 32, "learning_rate": 3e-3}


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer like Phi's; one token is start, end and padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=sorted(alphabet), special_tokens=[START], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=START, pad_token=START)


def invented_facts(facts: Sequence[ShapeFacts], random: Random) -> ShapeFacts:
    """Combine class and part sizes of different shapes with any colors and proportions.

    With real shapes a model could guess them without reading: nearly everything is gray, and much is compact.
    """
    label, sizes = (random.choice(facts) for _ in range(2))
    colors = random.sample(COLORS, len(sizes.parts))
    return ShapeFacts(
        label=label.label,
        parts=tuple(replace(part, color=color) for part, color in zip(sizes.parts, colors, strict=True)),
        upper=random.choice(colors),
        lower=random.choice(colors),
        proportion=random.choice(PROPORTIONS),
    )


def conversations(facts: Sequence[ShapeFacts], seed: int) -> Iterator[tuple[ShapeFacts, Conversation]]:
    """Yield conversations about invented shapes without end, with the facts that they are about."""
    random = Random(seed)
    while True:
        one = invented_facts(facts, random)
        yield one, random.choice(conversations_about(one, random))


def described_in_words(facts: ShapeFacts, random: Random) -> str:
    """Write all facts in a few words, in random order."""
    words = [
        facts.label, facts.proportion, " ".join(f"{part.color} {round(10 * part.share)}" for part in facts.parts),
        f"upper {facts.upper}", f"lower {facts.lower}",
    ]  # fmt: skip
    random.shuffle(words)
    return " ".join(words)


class WordsForClouds:
    """Batches of prompts with a description of the shape, or nothing, in place of the cloud.

    Phi-2 can use the context of a question without such training; a model this small must learn it.

    Args:
        processor: Builds prompts.
        facts: Facts about the training shapes.
        seed: Seed of the conversations.
    """

    def __init__(self, processor: MiniGPT3DProcessor, facts: Sequence[ShapeFacts], seed: int):
        self.processor, self.random = processor, Random(seed)
        self.conversations = conversations(facts, seed)

    def batch(self, size: int) -> dict[str, torch.Tensor]:
        """Return token ids, mask and labels, `(size, tokens)` each; labels are -100 outside of answers."""
        return dict(self.processor.pad([self._row() for _ in range(size)], padding_side="right", return_labels=True))

    def _row(self) -> Prompt:
        facts, conversation = next(self.conversations)
        messages = training_messages(annotation("a", conversation)["conversations"])
        template = self.random.choice(TEMPLATES) if len(messages) == 2 else "training"
        (full,) = self.processor.prompts([messages[:1]], template, read=False)
        *_, answer = messages[1]["content"]
        if template == "training":
            (full,) = self.processor.prompts([messages], template, read=False, for_training=True)
        else:
            full.add(self._ids(answer["text"] + END_MARK), is_answer=True)
        place = full.input_ids.index(self.processor.point_token_id)
        prompt = Prompt()
        prompt.add(full.input_ids[:place])
        if self.random.random() >= WITHOUT_WORDS:
            prompt.add(self._ids(described_in_words(facts, self.random)))
        prompt.input_ids += full.input_ids[place + 1 :]
        prompt.attention_mask += full.attention_mask[place + 1 :]
        prompt.labels += full.labels[place + 1 :]
        return prompt

    def _ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def texts_for_tokenizer(facts: Sequence[ShapeFacts], seed: int, count: int = 2000) -> list[str]:
    """Collect questions, answers and the marks of prompts, as they are and in lower case."""
    texts = [f"[INST] <PC></PC> [/INST]{END_MARK}", "<s>[INST] ", *BRIEF_QUESTIONS]
    for _, conversation in islice(conversations(facts, seed), count):
        texts += [text for turn in conversation.turns for text in turn]
    return texts + [text.lower() for text in texts]


def train_language(facts: Sequence[ShapeFacts], seed: int, folder: Path) -> dict[str, Any]:
    """Train tokenizer and language model, and save both.

    Args:
        facts: Facts about the training shapes.
        seed: Seed of weights and conversations.
        folder: Where both are saved.
    """
    tokenizer = train_tokenizer(texts_for_tokenizer(facts, seed), TRAINING["vocabulary"])
    set_seed(seed)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = NormedPhiForCausalLM(NormedPhiConfig(vocab_size=len(tokenizer), **ids, **LANGUAGE))
    processor = MiniGPT3DProcessor(PointCloudProcessor(), tokenizer, num_query_tokens=1, point_token_id=len(tokenizer))
    texts = WordsForClouds(processor, facts, seed)
    rate = TRAINING["learning_rate"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=TRAINING["steps"], pct_start=0.1)
    losses = []
    for _ in trange(TRAINING["steps"], desc="language model"):
        loss = model(**texts.batch(TRAINING["batch_size"])).loss
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

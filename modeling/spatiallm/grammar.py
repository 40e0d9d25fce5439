"""The grammar of layouts for generation: only tokens that continue a well-formed layout can be chosen.

It works with any tokenizer: tokens are known by their text, and a state of the language by what was written.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from hf_any3d.modeling.layers.layouts import KINDS, Box, Wall, number_names

_MOST = 1000
"""Numbers of doors, windows and boxes are written modulo this, so there are no more."""
_KEPT_STATES = 8192
_KINDS = tuple(KINDS)


class State(NamedTuple):
    """Place of a text in the grammar."""

    kind: int = 0  # index of the kind of line, between lines of the last one
    counts: tuple[int, ...] = (0,) * len(_KINDS)  # lines of each kind that were finished
    item: int = -1  # index of the part of the line that is being written; -1 before it, in which the kind is open
    written: str = ""  # of that part


class LayoutGrammar:
    """The language of layouts, character by character.

    Walls, doors, windows and boxes follow each other in this order, each numbered from 0; a door or window is in one
    of the walls; numbers are those of bins. This is what models are trained to write.
    """

    def __init__(self, num_bins: int, classes: Sequence[str], kinds: Iterable[str] = _KINDS):
        # What ends a label cannot be in one, or texts would have two readings.
        wrong = [name for name in classes if not name or set(name) & set(",()\n")]
        if wrong:
            raise ValueError(f"classes has {wrong[0]!r}; expected names without commas, parentheses and line breaks")
        self.num_bins = num_bins
        self.classes = tuple(classes)
        # Numbers of kinds, in the order in which a text has them.
        self.kinds = sorted({_KINDS.index(word) for word in kinds})
        # A box cannot be written without a label.
        if not self.classes:
            self.kinds = [number for number in self.kinds if KINDS[_KINDS[number]] is not Box]
        # Beginnings of labels, complete ones among them.
        self._labels = {name[:length] for name in self.classes for length in range(len(name) + 1)}
        # After its first part, a line is parts and what separates them.
        self._parts: list[list[str]] = []
        for kind in KINDS.values():
            # Doors and windows begin with the wall that they are in, boxes with their label.
            first = {Wall: [], Box: ["label"]}.get(kind, ["wall"])
            parts = [part for name in (*first, *["number"] * len(number_names(kind))) for part in (name, ",")]
            self._parts.append([*parts[:-1], ")"])

    @property
    def alphabet(self) -> frozenset[str]:
        """All characters of the language."""
        opening = "".join(f"{word}_={word.capitalize()}(" for word in _KINDS)
        return frozenset("0123456789,)\nwall_" + opening + "".join(self.classes))

    @property
    def longest_line(self) -> int:
        """Characters of the longest line, its break included."""
        # Each number with the comma or parenthesis behind it.
        numbers = max(len(number_names(kind)) for kind in KINDS.values()) * (len(str(self.num_bins)) + 1)
        return numbers + max((len(name) for name in self.classes), default=0) + len("window_999=Window(wall_999,)\n")

    def may_end(self, state: State) -> bool:
        """Return whether the text is a layout as it is."""
        return state.item == len(self._parts[state.kind]) or (state.item == -1 and not state.written)

    def advance(self, state: State, text: str) -> State | None:
        """Return the state after more text; None if the text is not of the language."""
        for character in text:
            following = self._next(state, character)
            if following is None:
                return None
            state = following
        return state

    def _next(self, state: State, character: str) -> State | None:
        if state.item == -1:
            return self._open(state, character)
        parts = self._parts[state.kind]
        if state.item == len(parts):  # the line is complete
            return State(state.kind, state.counts) if character == "\n" else None
        part = parts[state.item]
        if part in (",", ")"):
            if character != part:
                return None
            if part == ",":
                return state._replace(item=state.item + 1, written="")
            # A line counts once its parenthesis is closed: an unfinished wall cannot be named.
            counts = list(state.counts)
            counts[state.kind] += 1
            return State(state.kind, tuple(counts), state.item + 1)
        written = state.written + character
        if self._begins(part, written, state.counts):
            return state._replace(written=written)
        if part == "label":
            is_whole = state.written in self.classes
        else:
            is_whole = len(state.written) > (len("wall_") if part == "wall" else 0)
        if not is_whole:
            return None
        # The part is complete, and the character the comma or parenthesis after it.
        return self._next(state._replace(item=state.item + 1, written=""), character)

    def _begins(self, part: str, written: str, counts: tuple[int, ...]) -> bool:
        """Return whether a label, a wall's name or a number can begin like this."""
        if part == "label":
            return written in self._labels
        word = ""
        below = self.num_bins
        if part == "wall":
            word = "wall_"
            below = counts[0]  # a door is in a wall of an earlier line
        if word.startswith(written):
            return True
        if not written.startswith(word):
            return False
        number = written.removeprefix(word)
        # Python's own check takes digits of other scripts, and layouts write no leading zeros.
        is_number = number.isascii() and number.isdigit() and (number == "0" or number[0] != "0")
        return is_number and int(number) < below

    def _open(self, state: State, character: str) -> State | None:
        """Continue the beginning of a line, whose kind is open while several begin alike."""
        written = state.written + character
        for kind in self.kinds:
            # Kinds follow each other: after the first door there are no more walls.
            if kind < state.kind or (kind > 0 and state.counts[kind] >= _MOST):
                continue
            if kind in (1, 2) and not state.counts[0]:  # no wall to be in
                continue
            opening = f"{_KINDS[kind]}_{state.counts[kind]}={_KINDS[kind].capitalize()}("
            if opening == written:
                return State(kind, state.counts, 0)
            if opening.startswith(written):
                return state._replace(written=written)
        return None


class _Vocabulary:
    """Tokens of a tokenizer by their text, as a tree of characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        numbers = [number for number in range(len(tokenizer)) if number not in special]
        # After another token, as some tokenizers leave out a blank at the start of a text.
        (anchor,) = tokenizer("(", add_special_tokens=False)["input_ids"][-1:]
        options: Any = {"clean_up_tokenization_spaces": False}
        begin = len(tokenizer.decode([anchor], **options))
        texts = tokenizer.batch_decode([[anchor, number] for number in numbers], **options)
        self.texts = {number: text[begin:] for number, text in zip(numbers, texts, strict=True)}
        self._trees: dict[frozenset[str], dict[str, Any]] = {}

    def tree(self, alphabet: frozenset[str]) -> dict[str, Any]:
        """Return the tokens with the characters of an alphabet; an empty key has the tokens that end there."""
        if alphabet in self._trees:
            return self._trees[alphabet]
        # Special tokens and those with other characters never fit, so the search need not see them.
        root = self._trees[alphabet] = {}
        for number, text in self.texts.items():
            if text and alphabet.issuperset(text):
                node = root
                for character in text:
                    node = node.setdefault(character, {})
                node.setdefault("", []).append(number)
        return root


# Of each tokenizer by its size, as its tokens take seconds to read.
_VOCABULARIES: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, dict[int, _Vocabulary]] = weakref.WeakKeyDictionary()


class LayoutLogitsProcessor(LogitsProcessor):
    """Lets `generate` choose only tokens with which an answer stays a well-formed layout.

    It is for one call of `generate`, with greedy search, sampling or beams. Every answer that ends by itself is of the
    language; with `max_new_tokens` it always does.

    Args:
        tokenizer: Tokenizer of the model.
        grammar: The language.
        eos_token_id: Token that ends an answer; several as a list. By default that of the tokenizer.
        max_new_tokens: As given to `generate`; no line is begun that may not fit.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        grammar: LayoutGrammar,
        eos_token_id: int | list[int] | None = None,
        max_new_tokens: int | None = None,
    ):
        eos: Any = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
        if eos is None:
            raise ValueError("the tokenizer has no token that ends a text; expected eos_token_id")
        self.grammar = grammar
        self.max_new_tokens = max_new_tokens
        self.ends = eos if isinstance(eos, list) else [eos]
        vocabularies = _VOCABULARIES.setdefault(tokenizer, {})
        if len(tokenizer) not in vocabularies:
            vocabularies[len(tokenizer)] = _Vocabulary(tokenizer)
        vocabulary = vocabularies[len(tokenizer)]
        alphabet = grammar.alphabet
        self._texts = vocabulary.texts
        self._tree = vocabulary.tree(alphabet)
        missing = sorted(character for character in alphabet if "" not in self._tree.get(character, {}))
        if missing:
            raise ValueError(f"the tokenizer has no token for {missing[0]!r} alone, which layouts need")
        self._start: int | None = None
        self._states: dict[tuple[int, ...], State | None] = {}
        self._choices: OrderedDict[tuple[State, bool], torch.Tensor] = OrderedDict()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores `(rows, vocabulary)` that are minus infinity for all other tokens."""
        # The first call has the prompt alone, which is not of the language.
        if self._start is None:
            self._start = input_ids.shape[1]
        rows = input_ids[:, self._start :].tolist()
        states: dict[tuple[int, ...], State | None] = {}
        masked = torch.full_like(scores, -torch.inf)
        for number, row in enumerate(rows):
            answer = tuple(row)
            state = states[answer] = self._state(answer)
            must_end = self.max_new_tokens is not None and self.max_new_tokens - len(row) <= self.grammar.longest_line
            chosen = self._allowed(state, must_end).to(scores.device)
            masked[number, chosen] = scores[number, chosen]
        # Only the answers of the last step can be continued.
        self._states = states
        return masked  # pyright: ignore[reportReturnType] the annotation of transformers names a legacy type

    def _state(self, answer: tuple[int, ...]) -> State | None:
        """Return the state after an answer; None after its end."""
        known = len(answer)
        # Beams may have been exchanged since the last step: the longest known beginning is continued.
        while answer[:known] not in self._states and known:
            known -= 1
        state = self._states.get(answer[:known], State())
        for number in answer[known:]:
            if state is None or number in self.ends:
                return None  # only padding follows
            text = self._texts.get(number, "")
            following = self.grammar.advance(state, text) if text else None
            if following is None:
                raise ValueError(f"an answer goes on with {text!r}, which is not of the language")
            state = following
        return state

    def _allowed(self, state: State | None, must_end: bool) -> torch.Tensor:
        if state is None:
            return torch.tensor(self.ends)
        # The same states return in every line, and a search of the whole vocabulary is slow.
        key = (state, must_end)
        if key in self._choices:
            self._choices.move_to_end(key)
            return self._choices[key]
        allowed: list[int] = list(self.ends) if self.grammar.may_end(state) else []
        # With little room left, an answer that may end must end.
        if not (must_end and allowed):
            # Branches of the tree that leave the language are cut with all tokens behind them.
            stack = [(self._tree, state)]
            while stack:
                node, reached = stack.pop()
                for character, child in node.items():
                    # A line that is begun may be finished; a further one may not fit.
                    if character == "" or (must_end and character == "\n"):
                        continue
                    following = self.grammar.advance(reached, character)
                    if following is None:
                        continue
                    allowed += child.get("", ())
                    stack.append((child, following))
        self._choices[key] = torch.tensor(allowed)
        if len(self._choices) > _KEPT_STATES:
            self._choices.popitem(last=False)
        return self._choices[key]

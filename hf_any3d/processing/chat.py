"""MiniGPT3DProcessor: turns conversations about point clouds into inputs of the model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from hf_any3d.data.checks.single_objects import NoObjectWarning, why_too_large
from hf_any3d.data.inputs import split_clouds, to_cloud
from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.hooks import LibrarySettingsMixin
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig
from hf_any3d.processing.chat_messages import check_texts, is_conversation, take_clouds
from hf_any3d.processing.chat_templates import END_MARK, IGNORED, PLACE_MARK, Prompt, published_templates
from hf_any3d.processing.point_clouds import PointCloudProcessor, errors_of_cloud

RELEASED_POINTS = {"num_points": 8192, "features": ("xyz", "rgb"), "default_rgb": (0.0, 0.0, 0.0)}
"""Arguments of the `PointCloudProcessor` of the released model: colored clouds, black if colors are missing."""
Messages = Sequence[Mapping[str, Any]]
_OPTIONS = ("add_generation_prompt", "continue_final_message")


class MiniGPT3DProcessor(LibrarySettingsMixin, ProcessorMixin):
    """A `PointCloudProcessor` and a tokenizer in one.

    A message holds parts `{"type": "text", "text": …}` and `{"type": "point_cloud", …}`; the latter has a cloud under
    "path", "points" (optionally with "colors") or "point_cloud", or takes the next one of `point_clouds`. Each cloud
    gets `num_query_tokens` places in `input_ids`. Text between clouds is tokenized piece by piece, and so are the
    answers of templates that mark them.

    An initial message of the role "system" is put before the first question, unless the template supports the role;
    the model was trained without such messages.

    `published_templates` has the prompts of the released programs; they are saved with the processor, and
    `apply_chat_template` takes them by name.

    Args:
        feature_extractor: Prepares clouds.
        tokenizer: The language model's tokenizer; without a padding token it uses its end token, as published.
        num_query_tokens: Tokens per cloud, `MiniGPT3DConfig.num_query_tokens`.
        point_token_id: Id of these tokens, `MiniGPT3DConfig.point_token_id`.
        max_answer_tokens: Tokens to keep for training from the first answer on.
        end_mark: Text that ends an answer.
        hide_inner_bos: Whether the start tokens of later questions are hidden from attention, as in the released
            training, which treated them as padding.
        chat_template: Templates by name; by default the published ones.

    Source: MiniGPT-3D, Sec. 3 and 4.

    Example:
        ```python
        from transformers import ByT5Tokenizer
        from hf_any3d import MiniGPT3DProcessor, PointCloudProcessor, example_file

        # That of a saved model: AutoProcessor.from_pretrained("me/minigpt3d").
        processor = MiniGPT3DProcessor(PointCloudProcessor(), ByT5Tokenizer(), num_query_tokens=8, point_token_id=999)
        content = [{"type": "point_cloud", "path": example_file()}, {"type": "text", "text": "What is this?"}]
        # processor.decode_answers reads what model.generate(**inputs) adds to them.
        inputs = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True)
        inputs["input_ids"].shape  # (1, 47)
        ```
    """

    def __init__(
        self,
        feature_extractor: PointCloudProcessor,
        tokenizer: PreTrainedTokenizerBase,
        num_query_tokens: int = 32,
        point_token_id: int = 50295,
        max_answer_tokens: int = 1024,
        end_mark: str = END_MARK,
        hide_inner_bos: bool = False,
        chat_template: dict[str, str] | str | None = None,
    ):
        templates = published_templates() if chat_template is None else chat_template
        super().__init__(feature_extractor, tokenizer, chat_template=templates)
        # Padding is masked, so which token it is has no effect.
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.num_query_tokens = num_query_tokens
        self.point_token_id = point_token_id
        self.max_answer_tokens = max_answer_tokens
        self.end_mark = end_mark
        self.hide_inner_bos = hide_inner_bos

    @classmethod
    def from_config(
        cls,
        config: MiniGPT3DConfig,
        tokenizer: PreTrainedTokenizerBase,
        feature_extractor: PointCloudProcessor | None = None,
        **kwargs: Any,
    ) -> MiniGPT3DProcessor:
        """Build the processor of a model from its config and the tokenizer of its language model."""
        feature_extractor = feature_extractor or PointCloudProcessor(**RELEASED_POINTS)
        places = {"num_query_tokens": config.num_query_tokens, "point_token_id": config.point_token_id}
        return cls(feature_extractor, tokenizer, **{**places, **kwargs})

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs of `MiniGPT3DForConditionalGeneration`."""
        return ["input_ids", "attention_mask", "points"]

    def __call__(
        self,
        text: str | Sequence[str],
        points: Any = None,
        *,
        padding: bool | str = True,
        truncation: bool = False,
        max_length: int | None = None,
        padding_side: str = "left",
        return_tensors: str | None = "pt",
        text_kwargs: Mapping[str, Any] | None = None,
    ) -> BatchFeature:
        """Prepare complete prompts, with `<PointCloudHere>` in the place of each cloud.

        Args:
            text: One prompt or many.
            points: The clouds in the order of their places, as `PointCloudProcessor` accepts them.
            padding: True or "longest" pads prompts to the longest, "max_length" to `max_length`; False does not pad
                them, which requires lists if lengths differ.
            truncation: Whether to cut prompts to `max_length` tokens, at their end.
            max_length: Maximum number of tokens; needs `truncation` or `padding="max_length"`.
            padding_side: Side to pad.
            return_tensors: "pt" or "np"; None for lists.
            text_kwargs: `padding`, `truncation`, `max_length` and `padding_side` in a mapping, as in transformers'
                processors; they take precedence.

        Returns:
            As `apply_chat_template`.

        Raises:
            ValueError: There are more or fewer clouds than places for them.
            PointCloudFileError: A file cannot be read.
        """
        length = {"padding": padding, "truncation": truncation, "max_length": max_length}
        length |= {"padding_side": padding_side, **(text_kwargs or {})}
        texts = [text] if isinstance(text, str) else list(text)
        prompts = self._encode([cut(prompt) for prompt in texts])
        read = [] if points is None else self.read_points(points)
        wanted = [self._count(prompt) for prompt in prompts]
        if sum(wanted) != len(read):
            raise ValueError(f"text has {sum(wanted)} places for point clouds and points {len(read)} clouds")
        # Each prompt takes as many of the clouds as it has places.
        for prompt, count in zip(prompts, wanted, strict=True):
            prompt.points = read[:count]
            read = read[count:]
        return self.pad(prompts, return_tensors=return_tensors, **length)

    def apply_chat_template(
        self,
        conversation: Messages | Sequence[Messages],
        chat_template: str | None = None,
        *,
        point_clouds: Sequence[Any] | None = None,
        tokenize: bool = False,
        return_labels: bool = False,
        return_dict: bool = True,
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        padding: bool | str = True,
        truncation: bool = False,
        max_length: int | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> str | list[str] | BatchFeature | Any:
        """Format conversations as inputs of the model.

        Args:
            conversation: The messages of one conversation, or of many.
            chat_template: Name of a template, or a template; None for the default.
            point_clouds: Clouds for parts without one, in their order; a list of such lists for many conversations.
                Anything that `PointCloudProcessor` accepts.
            tokenize: Whether to return token ids and points instead of text with marks in the places of clouds.
            return_labels: Also return `labels`, the ids of answers and -100 elsewhere; from the first answer on,
                `max_answer_tokens` are kept.
            return_dict: False for `input_ids` alone.
            padding_side: Side to pad; by default left, with labels right.
            return_tensors: "pt" or "np".
            add_generation_prompt: For templates that have one; the published have none.
            continue_final_message: Whether the last message is the beginning of an answer.
            return_assistant_tokens_mask: Also return `assistant_masks`, 1 for the tokens of answers and 0 elsewhere;
                for templates that mark answers.
            padding: As in a call of the processor.
            truncation: The same.
            max_length: The same.
            processor_kwargs: These three, `padding_side` and `return_tensors` in a mapping, or `text_kwargs` with
                them, as in transformers' processors; they take precedence.
            **kwargs: Variables of the template.

        Returns:
            Text unless `tokenize`; else `input_ids` and `attention_mask` `(conversations, tokens)`, `points`
            `(clouds, num_points, channels)` of all conversations together if there are any, and `labels` and
            `assistant_masks` on request.
        """
        is_batch = not is_conversation(conversation)
        conversations: list[Any] = list(conversation) if is_batch else [conversation]
        if not conversations or not all(map(is_conversation, conversations)):
            raise ValueError("conversation: expected messages with 'role' and 'content', or lists of them")
        # Masks are a column of a batch of tokens.
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise ValueError("return_assistant_tokens_mask=True; expected tokenize=True and return_dict=True with it")
        variables = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            **kwargs,
        }
        if not tokenize:
            # Text has marks in the places of clouds, so that no cloud is read.
            plain = [take_clouds(messages)[0] for messages in conversations]
            texts, _ = self._render(plain, chat_template, False, **variables)
            return texts if is_batch else texts[0]
        # One conversation has one list of clouds.
        if point_clouds is not None and not is_batch:
            point_clouds = [point_clouds]
        prompts = self.prompts(
            conversations,
            chat_template,
            point_clouds=point_clouds,
            for_training=return_labels,
            marked=return_assistant_tokens_mask,
            **variables,
        )
        # On the left, since generation goes on where all prompts end
        arguments = {
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "padding_side": padding_side or ("right" if return_labels else "left"),
            "return_tensors": return_tensors,
        }
        # Arguments of `pad`; as in transformers' processors, those in a mapping, also for text, come before
        further = dict(processor_kwargs or {})
        for_text = further.pop("text_kwargs", {})
        batch = self.pad(
            prompts,
            return_labels=return_labels,
            return_assistant_tokens_mask=return_assistant_tokens_mask,
            **{**arguments, **for_text, **further},
        )
        return batch if return_dict else batch["input_ids"]

    def prompts(
        self,
        conversations: Sequence[Messages],
        chat_template: str | None = None,
        *,
        point_clouds: Sequence[Sequence[Any]] | None = None,
        read: bool = True,
        for_training: bool = False,
        marked: bool = False,
        **options: Any,
    ) -> list[Prompt]:
        """Make prompts for `pad`; the arguments are those of `apply_chat_template`.

        `read=False` leaves `points` empty. `for_training` shortens answers and requires that all are marked, `marked`
        requires a template that marks answers.
        """
        plain = []
        clouds = []
        further_clouds = [None] * len(conversations) if point_clouds is None else point_clouds
        for messages, further in zip(conversations, further_clouds, strict=True):
            texts, clouds_of_conversation = take_clouds(messages, further, complete=read)
            # Such a token in a question could end it, or start an answer of its own.
            check_texts(texts, self.tokenizer.all_special_tokens)
            plain.append(texts)
            clouds.append(clouds_of_conversation)
        texts, answers = self._render(plain, chat_template, True, **options)
        # Without answers all labels would be ignored, and the loss NaN.
        if (marked and not self._marks_answers(chat_template)) or (for_training and not all(answers)):
            raise ValueError("a conversation has no answers, or the chat template does not mark them {% generation %}")
        prompts = self._encode([cut(text, spans) for text, spans in zip(texts, answers, strict=True)])
        for prompt, clouds_of_conversation in zip(prompts, clouds, strict=True):
            if for_training:
                first = next(number for number, label in enumerate(prompt.labels) if label != IGNORED)
                prompt.shorten(first + self.max_answer_tokens)
                # If the cut is among the places of a cloud, those that are left are the last tokens.
                places = prompt.input_ids.count(self.point_token_id)
                prompt.shorten(len(prompt.input_ids) - places % self.num_query_tokens)
            if read and clouds_of_conversation:
                # Not the clouds whose places were cut off.
                prompt.points = self.read_points(clouds_of_conversation)[: self._count(prompt)]
        return prompts

    def pad(
        self,
        prompts: Sequence[Prompt],
        *,
        padding: bool | str = True,
        truncation: bool = False,
        max_length: int | None = None,
        padding_side: str = "left",
        return_labels: bool = False,
        return_assistant_tokens_mask: bool = False,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Make a batch of prompts; see `apply_chat_template`."""
        to_length = padding == "max_length"
        if (max_length is not None) != (truncation or to_length):
            raise ValueError(
                f"max_length={max_length}, truncation={truncation!r}, padding={padding!r}; expected max_length with "
                "truncation=True or padding='max_length', and only with them"
            )
        length = max_length or 0
        if truncation:
            shortened = []
            for prompt in prompts:
                ids = prompt.input_ids
                if self.point_token_id in ids[length:]:
                    raise ValueError(
                        f"max_length={length} cuts places of a point cloud off a prompt of {len(ids)} tokens"
                    )
                columns = ids[:length], prompt.attention_mask[:length], prompt.labels[:length]
                shortened.append(Prompt(*columns, prompt.points))
            prompts = shortened
        longest = max(len(prompt.input_ids) for prompt in prompts)
        if to_length:
            longest = max(longest, length)
        # With a length of 0 nothing is filled up.
        batch: dict[str, Any] = self._columns(prompts, longest if padding else 0, padding_side)
        # Labels are made in any case, as masks follow from them.
        if return_assistant_tokens_mask:
            batch["assistant_masks"] = [[int(label != IGNORED) for label in labels] for labels in batch["labels"]]
        if not return_labels:
            del batch["labels"]
        # Prompts without clouds have no input `points` at all.
        points = [cloud for prompt in prompts for cloud in prompt.points]
        if points:
            if "grid_coord" in self.feature_extractor.model_input_names:
                # Clouds of voxels differ in size. Their encoder samples them on its grid again, where a point that
                # occurs twice counts once, so they are filled up with their first point.
                most = max(map(len, points))
                points = [np.concatenate([cloud, cloud[:1].repeat(most - len(cloud), axis=0)]) for cloud in points]
            batch["points"] = np.stack(points)  # (clouds, num_points, channels)
        return BatchFeature(batch, tensor_type=return_tensors)

    def _columns(self, prompts: Sequence[Prompt], length: int, padding_side: str) -> dict[str, list[list[int]]]:
        """Pad the prompts of a batch at one side, and return its columns."""
        fills = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        columns: dict[str, list[list[int]]] = {}
        for name, fill in fills.items():
            columns[name] = []
            for prompt in prompts:
                values = getattr(prompt, name)
                # A negative number is no filling.
                filling = [fill] * (length - len(values))
                columns[name].append({"left": filling + values, "right": values + filling}[padding_side])
        return columns

    def read_points(self, clouds: Any) -> list[np.ndarray]:
        """Read and prepare clouds, each `(num_points, channels)` float32; warn of those that cannot be objects."""
        if type(self.feature_extractor) is PointCloudProcessor:  # others are of models that know scenes
            entries = split_clouds(clouds)
            clouds = []
            for number, entry in enumerate(entries):
                with errors_of_cloud(number, len(entries)):
                    clouds.append(to_cloud(entry, self.feature_extractor.features))
                reason = why_too_large(clouds[-1])
                if reason is not None:
                    warnings.warn(reason, NoObjectWarning, stacklevel=3)
        return list(self.feature_extractor(clouds, return_tensors=None)["points"])

    def decode_answers(self, generated: Any, strip: bool = True) -> list[str]:
        """Decode the answers, up to the end mark, in generated tokens `(answers, tokens)` without the prompt."""
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        texts = self.tokenizer.batch_decode(generated, **options)
        # A model may go on writing after its end mark.
        answers = [text.split(self.end_mark)[0] for text in texts]
        return [answer.strip() for answer in answers] if strip else answers

    def _render(
        self, conversations: list[list[dict]], chat_template: str | None, with_answers: bool, **options: Any
    ) -> tuple[list[str], list[list[tuple[int, int]]]]:
        """Fill in the template.

        Returns:
            The text of each conversation, and first and last place of each of its answers, if `with_answers` and the
            template marks them.
        """
        template = self._template(chat_template)
        for name in options:
            # Jinja ignores variables that a template does not use, so a typing error would have no effect.
            if name not in _OPTIONS and re.search(rf"\b{re.escape(name)}\b", template) is None:
                raise TypeError(f"unknown argument {name!r}; the chat template has no variable of that name either")
        # A template that tells roles apart has their names in quotes.
        if re.search(r"['\"]system['\"]", template) is None:
            conversations = [_without_system(messages) for messages in conversations]
        marked = with_answers and self._marks_answers(chat_template)
        variables = {**self.tokenizer.special_tokens_map, **options}
        with stored_settings("chat template"):
            rendered: Any = render_jinja_template(
                conversations=conversations, chat_template=template, return_assistant_tokens_mask=marked, **variables
            )
        texts, answers = rendered
        return texts, answers if marked else [[] for _ in texts]

    def _template(self, chat_template: str | None) -> str:
        by_name: Any = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        # What is no name is a template itself.
        template = by_name.get(chat_template or "default", chat_template)
        # Without a brace it is a name that does not exist, not a template.
        if template is None or (template not in by_name.values() and "{" not in template):
            raise ValueError(f"chat_template={chat_template!r}; expected one of {', '.join(map(repr, by_name))}")
        return template

    def _marks_answers(self, chat_template: str | None) -> bool:
        return re.search(r"{%-?\s*generation\b", self._template(chat_template)) is not None

    def _encode(self, rows: list[list]) -> list[Prompt]:
        # All pieces of text in one call of the tokenizer, which is much faster than one by one.
        texts = [text for row in rows for text, is_place, _ in row if not is_place]
        ids = iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
        places = [self.point_token_id] * self.num_query_tokens
        prompts = []
        for row in rows:
            prompt = Prompt()
            for _, is_place, is_answer in row:
                prompt.add(places if is_place else next(ids), is_answer)
            if self.hide_inner_bos:
                for number, token in enumerate(prompt.input_ids):
                    # The start of the prompt itself stays visible.
                    if number and token == self.tokenizer.bos_token_id:
                        prompt.attention_mask[number] = 0
            prompts.append(prompt)
        return prompts

    def _count(self, prompt: Prompt) -> int:
        return prompt.input_ids.count(self.point_token_id) // self.num_query_tokens


ChatProcessor = MiniGPT3DProcessor
"""What chat pipelines and trainings call: the processor of any chat model, of which there is one so far."""


def _without_system(messages: list[dict]) -> list[dict]:
    """Move the text of a first message of the system before the first question, behind its clouds."""
    # Only a first message of the system has a place before the first question.
    system, *rest = messages
    if system["role"] != "system":
        return messages
    has_cloud = any(part["type"] != "text" for part in system["content"])
    if has_cloud or not rest or rest[0]["role"] != "user":
        raise ValueError("a message of the system holds a cloud or no question follows; expected text and a question")
    text = {"type": "text", "text": "".join(part["text"] for part in system["content"]) + "\n\n"}
    question, *later = rest
    parts = question["content"]
    # After the clouds that the question begins with
    first_text = next((place for place, part in enumerate(parts) if part["type"] == "text"), len(parts))
    return [{**question, "content": [*parts[:first_text], text, *parts[first_text:]]}, *later]


def cut(text: str, answers: Iterable[Sequence[int]] = ()) -> list[tuple[str, bool, bool]]:
    """Cut a prompt at places of clouds and at the start and end of answers.

    Returns:
        The pieces: text, whether it is the place of a cloud, and whether it belongs to an answer.
    """
    spans = [(start, min(stop, len(text))) for start, stop in answers]
    places = [match.span() for match in re.finditer(re.escape(PLACE_MARK), text)]
    # Each border starts a piece, so that none is text and place at once, or partly an answer.
    borders = sorted({0, len(text), *(border for span in (*spans, *places) for border in span)})
    return [
        (text[start:stop], (start, stop) in places, any(first <= start < last for first, last in spans))
        for start, stop in pairwise(borders)
    ]

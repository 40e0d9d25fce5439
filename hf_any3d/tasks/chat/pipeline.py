"""`pipeline("point-cloud-text-to-text")`: answers to questions about point clouds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import GenerationConfig

from hf_any3d.processing.chat import ChatProcessor
from hf_any3d.processing.chat_messages import is_conversation
from hf_any3d.processing.chat_templates import Prompt
from hf_any3d.tasks.base import PointCloudPipeline
from hf_any3d.tasks.chat.generation import Answerer, take_generation
from hf_any3d.tasks.steps import Clouds, as_clouds, refuse_unknown, without_none

QUESTION = "What is this?"
_GENERATION = "stop_sequence, generate_kwargs, arguments of generate"


@dataclass
class Request:
    """A conversation, its prompt, whether answers continue its last message, and these once they are generated."""

    messages: list[Mapping[str, Any]]
    prompt: Prompt
    is_chat: bool
    continues: bool = False
    answers: Sequence[str] = ()


class PointCloudTextToTextPipeline(PointCloudPipeline):
    """Answer questions about point clouds: chat, captions, classification by text.

    Takes

    - messages with `role` and `content`, which consists of `{"type": "text", "text": …}` and
      `{"type": "point_cloud", "path": …}`, or "points" or "point_cloud" instead of "path";
    - a cloud, as the other pipelines take it, with the question in `text`, or a dict with "text" and "path" or
      "points";
    - a list, generator, dataset or dataset column of either.

    Returns, for each, a list of `num_return_sequences` dicts `{"generated_text": …}` with the answer; for messages it
    is the messages with the answer, as in the pipelines of transformers, unless `return_full_text=False`. An answer
    ends before the end mark.

    A repeated cloud is encoded once. `hf_any3d.ChatSession` continues a conversation from its cache, and streams.

    Arguments of a call, besides those of `generate` (`max_new_tokens`, 256 by default, `do_sample`, `stop_strings`, …;
    also in a dict, `generate_kwargs`):

    - `text`: the question, or one for each cloud; "What is this?" by default.
    - `chat_template`: name of a template of the processor, such as "evaluation".
    - `return_full_text`: see above.
    - `continue_final_message`: whether the last message is continued, not answered; by default one of the assistant.
    - `stop_sequence`: a text that ends an answer, or several; another name of `stop_strings`.

    Example:
        ```python
        chat = pipeline("point-cloud-text-to-text", model="me/minigpt3d")
        content = [{"type": "point_cloud", "path": "chair.ply"}, {"type": "text", "text": "What is this?"}]
        chat([{"role": "user", "content": content}])
        chat(["chair.ply", "lamp.stl"], text="Caption this 3D model in detail.", batch_size=2)
        ```
    """

    processor: ChatProcessor
    _load_processor = True
    _load_feature_extractor = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=256)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.answerer = Answerer(self.model, self.processor)

    def _sanitize_parameters(
        self,
        text: str | Sequence[str] | None = None,
        chat_template: str | None = None,
        return_full_text: bool | None = None,
        continue_final_message: bool | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        # What is left after these is unknown.
        generation = take_generation(kwargs)
        refuse_unknown(kwargs, f"text, chat_template, return_full_text, continue_final_message, {_GENERATION}")
        before = without_none(text=text, chat_template=chat_template, continue_final_message=continue_final_message)
        return before, generation, without_none(return_full_text=return_full_text)

    def __call__(self, inputs: Any, text: str | Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Answer one question or many; see the class and `PointCloudPipeline`."""
        # A list of messages would be taken for a list of clouds.
        if is_conversation(inputs):
            inputs = {"messages": inputs}
        if text is None or isinstance(text, str):
            return super().__call__(inputs, **kwargs, **without_none(text=text))
        clouds = as_clouds(inputs)
        if not isinstance(clouds, Clouds) or len(clouds) != len(text):
            count = len(clouds) if isinstance(clouds, Clouds) else 1
            raise ValueError(f"text has {len(text)} questions for {count} clouds; expected one, or one for each")
        return super().__call__(Questions(clouds, text), **kwargs)

    def preprocess(
        self,
        inputs: Any,
        text: str = QUESTION,
        chat_template: str | None = None,
        continue_final_message: bool | None = None,
    ) -> dict[str, Request]:
        """Prepare the prompt of one conversation, or of one cloud with its question."""
        # Transformers wraps a conversation in an object with this attribute.
        messages = getattr(inputs, "messages", inputs)
        is_chat = True
        if isinstance(inputs, Mapping) and "messages" in inputs:
            # `Questions` makes messages, too, but asks for the answers alone.
            messages = inputs["messages"]
            is_chat = inputs.get("is_chat", True)
        elif not is_conversation(messages):
            question = inputs.get("text") if isinstance(inputs, Mapping) else None
            messages = _question(inputs, question or text)
            is_chat = False
        # A message of the assistant at the end is the beginning of an answer.
        continues = messages[-1]["role"] == "assistant"
        if is_chat and continue_final_message is not None:
            continues = continue_final_message
        (prompt,) = self.processor.prompts(
            [messages], chat_template, continue_final_message=continues, add_generation_prompt=not continues
        )
        return {"request": Request(list(messages), prompt, is_chat, continues)}

    def _forward(self, model_inputs: dict[str, Any], **generation: Any) -> dict[str, list[Request]]:
        requests = model_inputs["request"]
        requests = requests if isinstance(requests, list) else [requests]
        prompts = [request.prompt for request in requests]
        generated = self.answerer.generate(prompts, self.generate_settings(generation))
        # Prompts are padded on the left, so all answers start at the same place.
        length = max(len(prompt.input_ids) for prompt in prompts)
        texts = self.processor.decode_answers(generated[:, length:], strip=False)
        # With num_return_sequences, a request has several answers, one after the other.
        each = len(texts) // len(requests)
        answered = [replace(one, answers=texts[each * n : each * (n + 1)]) for n, one in enumerate(requests)]
        return {"request": answered}

    def postprocess(self, outputs: dict[str, Any], return_full_text: bool | None = None) -> list[dict[str, Any]]:
        """Return the answers of one conversation."""
        request = outputs["request"]
        request = request[0] if isinstance(request, list) else request
        if not request.is_chat or return_full_text is False:
            return [{"generated_text": text.strip()} for text in request.answers]
        *before, last = request.messages
        if not request.continues:
            before = request.messages
            answers = [{"role": "assistant", "content": text.strip()} for text in request.answers]
        else:
            # The answer continues what the message already has. Stripped on the right alone, as the text goes on where
            # the message ends, with a space or without.
            start = last["content"] if isinstance(last["content"], str) else last["content"][-1]["text"]
            answers = [{**last, "content": start + text.rstrip()} for text in request.answers]
        return [{"generated_text": [*before, answer]} for answer in answers]

    def generate_settings(self, generation: dict[str, Any]) -> dict[str, Any]:
        """Combine the arguments of `generate` of a call with the pipeline's and the defaults."""
        others = dict(generation)
        generation = take_generation(others)
        refuse_unknown(others, _GENERATION)
        pad = {"pad_token_id": self.processor.tokenizer.pad_token_id}
        return self._prepare_generate_kwargs(generation, return_dict_in_generate=False, **pad)


class Questions(Clouds):
    """Many clouds, each with its own question."""

    def __init__(self, clouds: Clouds, texts: Sequence[str]):
        super().__init__(clouds.rows)
        self.texts = texts

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"messages": _question(self.rows[number], self.texts[number]), "is_chat": False}


def _question(cloud: Any, text: str) -> list[dict[str, Any]]:
    content = [{"type": "point_cloud", "point_cloud": cloud}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]

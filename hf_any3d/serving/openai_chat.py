"""Chat in the form of OpenAI's API: requests, their conversations, answers, and events of a stream."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field

from hf_any3d.processing.chat_messages import take_clouds
from hf_any3d.serving.inputs import Upload, upload_of
from hf_any3d.serving.limits import Refused
from hf_any3d.serving.service import Service
from hf_any3d.tasks.chat.batches import ChatAnswer, Conversation
from hf_any3d.tasks.detection.layout_chat import layout_conversation
from hf_any3d.utils.messages import cut

_NEW_TOKENS = 256
# Lower temperatures are greedy, as scores divided by them would be infinite.
_LEAST_TEMPERATURE = 0.01
DONE = b"data: [DONE]\n\n"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(_Strict):
    """Text in a message."""

    type: Literal["text"]
    text: str


class CloudURL(_Strict):
    """Address of a cloud: a data URL, or `upload:NAME` for a file of the same request."""

    url: str
    file_type: str | None = None


class CloudPart(_Strict):
    """A cloud in a message."""

    type: Literal["point_cloud_url"]
    point_cloud_url: CloudURL


class Message(_Strict):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Annotated[TextPart | CloudPart, Discriminator("type")]]

    @property
    def parts(self) -> list[TextPart | CloudPart]:
        """The content as parts."""
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content

    @property
    def texts(self) -> list[TextPart]:
        """The parts that are texts."""
        return [part for part in self.parts if isinstance(part, TextPart)]


class StreamOptions(_Strict):
    """Options of a streamed answer."""

    include_usage: bool = False


class ChatRequest(_Strict):
    """Request of `/v1/chat/completions`; fields of OpenAI's that are not here are refused."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="The same as max_tokens.")
    temperature: float = Field(0.0, ge=0, le=2, description="Greedy below 0.01.")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Without effect.")


def check_request(request: ChatRequest, service: Service) -> None:
    """Check what a request's types leave open."""
    if request.model != service.name:
        text = f"model: {cut(request.model, 80)!r}; this server has {service.name!r}"
        raise Refused(404, text, "invalid_request_error", "model")
    # Before the clouds are read
    if (tokens := _tokens(request, service)) > service.limits.new_tokens:
        raise Refused(400, f"max_tokens: {tokens}; expected at most {service.limits.new_tokens}", param="max_tokens")
    if not request.temperature and request.top_p != 1:
        raise Refused(400, "top_p: without effect at temperature 0; expected a temperature", param="top_p")
    if request.messages[-1].role != "user":
        role = request.messages[-1].role
        raise Refused(400, f"messages: the last is of role {role!r}; expected user", param="messages")


def _tokens(request: ChatRequest, service: Service) -> int:
    # A layout has some tens of tokens a line.
    most = service.limits.new_tokens
    usual = min(_NEW_TOKENS, most) if service.layouts is None else most
    return request.max_tokens or request.max_completion_tokens or usual


def uploads_of(request: ChatRequest, files: Mapping[str, Upload]) -> list[Upload]:
    """Return the clouds of a request's messages, in their order."""
    uploads = []
    for number, message in enumerate(request.messages):
        for place, part in enumerate(message.parts):
            if isinstance(part, CloudPart):
                where = f"messages.{number}.content.{place}.point_cloud_url"
                uploads.append(upload_of(part.point_cloud_url.model_dump(), where, files))
    # A file in no message was forgotten there, or its name is misspelled.
    names = {upload.name for upload in uploads}
    if unused := [name for name in files if name not in names]:
        raise Refused(400, f"file {unused[0]!r} is in no message; expected a part with url 'upload:{unused[0]}'")
    return uploads


def conversation_of(request: ChatRequest, uploads: list[Upload], service: Service) -> Conversation:
    """Read the clouds of a request and make its prompt."""
    clouds = [upload.read(service.limits) for upload in uploads]
    service.metrics.points.inc(sum(map(len, clouds)))
    # Clouds were collected in the order of the parts, in which they are taken here.
    rest = iter(clouds)
    messages = []
    for message in request.messages:
        content = [
            {"type": "text", "text": part.text}
            if isinstance(part, TextPart)
            else {"type": "point_cloud", "point_cloud": next(rest)}
            for part in message.parts
        ]
        messages.append({"role": message.role, "content": content})
    sampling = {}
    tokens = _tokens(request, service)
    if request.temperature >= _LEAST_TEMPERATURE:  # below it is greedy
        # top_k=0 turns off a limit that the model's generation config may have, as OpenAI's API has none.
        sampling = {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
    try:
        if service.layouts is not None:
            return layout_conversation(service.layouts, messages, tokens, sampling, request.seed)
        take_clouds(messages)  # here an error does not name the number of a conversation
        (prompt,) = service.pipe.processor.prompts([messages], service.chat_template, add_generation_prompt=True)
    except ValueError as error:
        raise Refused(400, str(error), param="messages") from error
    # Prompt and answer share the positions of the language model.
    context = getattr(service.pipe.model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None:
        if len(prompt.input_ids) >= context:
            raise Refused(
                400,
                f"messages: {len(prompt.input_ids)} tokens; the language model takes {context}, including the answer",
                param="messages",
            )
        # Rather a shorter answer than none
        tokens = min(tokens, context - len(prompt.input_ids))
    return Conversation(prompt, tokens, sampling, request.seed)


def completion(name: str, request_id: str, conversation: Conversation, answer: ChatAnswer) -> dict[str, Any]:
    """Return a complete answer in OpenAI's form."""
    message = {"role": "assistant", "content": answer.text}
    return {
        "id": f"chatcmpl-{request_id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(answer)}],
        "usage": usage(conversation, answer),
    }


def usage(conversation: Conversation, answer: ChatAnswer) -> dict[str, int]:
    """Return the numbers of tokens, those of clouds included."""
    # Places of clouds are tokens of the prompt, too.
    prompt = len(conversation.prompt.input_ids)
    return {"prompt_tokens": prompt, "completion_tokens": answer.tokens, "total_tokens": prompt + answer.tokens}


def _reason(answer: ChatAnswer) -> str:
    return "stop" if answer.is_complete else "length"


class Chunks:
    """Makes the chunks of a streamed answer."""

    def __init__(self, name: str, request_id: str):
        # All chunks of an answer have one id and one time.
        self._head = {"id": f"chatcmpl-{request_id}", "object": "chat.completion.chunk"}
        self._head |= {"created": int(time.time()), "model": name}

    def delta(self, delta: dict[str, str], answer: ChatAnswer | None = None) -> dict[str, Any]:
        """Return a chunk with a piece of the message; the last one has the reason of the end."""
        reason = None if answer is None else _reason(answer)
        return {**self._head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    def usage(self, conversation: Conversation, answer: ChatAnswer) -> dict[str, Any]:
        """Return the chunk with the numbers of tokens."""
        # As in OpenAI's API, this chunk has an empty list of choices.
        return {**self._head, "choices": [], "usage": usage(conversation, answer)}

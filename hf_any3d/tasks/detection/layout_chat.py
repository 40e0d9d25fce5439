"""Chat about scans with models that write layouts: an instruction in, lines of a layout out as they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_any3d.processing.chat_templates import Prompt
from hf_any3d.tasks.chat.batches import ChatAnswer, Conversation
from hf_any3d.tasks.chat.generation import Canceled
from hf_any3d.tasks.detection.room_layouts import LayoutTextPipeline, Request, last_line, scan_of_messages


@dataclass(eq=False)
class LayoutConversation(Conversation):
    """A scan with an instruction, whose tokens are only counted in `prompt`."""

    request: Request = field(kw_only=True)

    @property
    def key(self) -> Any:
        """Each is answered alone, as its lines are sent when they are written."""
        return self


def layout_conversation(
    pipe: LayoutTextPipeline, messages: Any, new_tokens: int, sampling: Mapping[str, Any], seed: int | None
) -> LayoutConversation:
    """Read the scan of a conversation."""
    cloud, task = scan_of_messages(messages)
    request = pipe.request(cloud, task)
    # Only the number of tokens is needed, for the usage that an answer states.
    ids = pipe.processor([request.room], task=request.task, return_tensors="np")["input_ids"][0].tolist()
    return LayoutConversation(Prompt(ids), new_tokens, sampling, seed, request=request)


def answer_layout(pipe: LayoutTextPipeline, conversation: LayoutConversation) -> ChatAnswer:
    """Write the layout of a scan, in its frame and unit; each line is passed on when it is written."""
    generation = {"do_sample": False} | dict(conversation.sampling) | {"max_new_tokens": conversation.new_tokens}
    generation["stopping_criteria"] = [Canceled(conversation.canceled)]
    lines: list[str] = []
    with conversation.seeded():
        entities = pipe.entities(conversation.request, generation)
        # The request with its counts is the generator's own result, which a for loop would drop.
        while True:
            try:
                lines.append(last_line(next(entities)))
            except StopIteration as end:
                answered: Request = end.value
                break
            conversation.listen(lines[-1] if len(lines) == 1 else f"\n{lines[-1]}")
    return ChatAnswer("\n".join(lines), answered.counts[0], answered.are_whole[0])

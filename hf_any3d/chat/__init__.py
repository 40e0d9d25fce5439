"""Conversations about point clouds: prompts, processor, generation and sessions; see `hf_any3d.tasks.chat`."""

from hf_any3d.processing.chat import RELEASED_POINTS, MiniGPT3DProcessor
from hf_any3d.processing.chat_messages import (
    clean_question,
    released_answer,
    released_evaluation_answer,
    training_messages,
)
from hf_any3d.processing.chat_templates import END_MARK, PLACE_MARK, Prompt, published_templates
from hf_any3d.tasks.chat.generation import PUBLISHED_GENERATION
from hf_any3d.tasks.chat.session import ChatSession

__all__ = [
    "END_MARK",
    "PLACE_MARK",
    "PUBLISHED_GENERATION",
    "RELEASED_POINTS",
    "ChatSession",
    "MiniGPT3DProcessor",
    "Prompt",
    "clean_question",
    "published_templates",
    "released_answer",
    "released_evaluation_answer",
    "training_messages",
]

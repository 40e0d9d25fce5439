"""Model cards: the README.md that is written whenever a model is saved or pushed."""

from hf_any3d.model_card.building import build_model_card
from hf_any3d.model_card.descriptions import METHODS, Method
from hf_any3d.model_card.saving import write_model_card, write_trainer_card
from hf_any3d.model_card.subject import Subject
from hf_any3d.model_card.tasks import TASKS, CardTask

__all__ = [
    "METHODS",
    "TASKS",
    "CardTask",
    "Method",
    "Subject",
    "build_model_card",
    "write_model_card",
    "write_trainer_card",
]

"""Model cards: what a saved or pushed model says of itself, written in one place for every door."""

from hf_any3d.model_card.building import Subject, build_model_card
from hf_any3d.model_card.doors import keep_model_card, write_model_card
from hf_any3d.model_card.tasks import TASKS, CardTask

__all__ = ["TASKS", "CardTask", "Subject", "build_model_card", "keep_model_card", "write_model_card"]

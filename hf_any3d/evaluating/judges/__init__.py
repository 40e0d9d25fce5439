"""Judges: text in, text out."""

from hf_any3d.evaluating.judges.base import Judge, JudgeError
from hf_any3d.evaluating.judges.class_names import ClassNameJudge
from hf_any3d.evaluating.judges.endpoint import EndpointJudge
from hf_any3d.evaluating.judges.language_model import LanguageModelJudge

__all__ = ["ClassNameJudge", "EndpointJudge", "Judge", "JudgeError", "LanguageModelJudge"]

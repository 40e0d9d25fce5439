"""Judges: text in, text out."""

from hf_any3d.evaluation.llm_judge.base import Judge, JudgeError
from hf_any3d.evaluation.llm_judge.endpoint import EndpointJudge
from hf_any3d.evaluation.llm_judge.language_model import ClassNameJudge, LanguageModelJudge

__all__ = ["ClassNameJudge", "EndpointJudge", "Judge", "JudgeError", "LanguageModelJudge"]

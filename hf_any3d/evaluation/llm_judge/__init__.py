"""Judges of a model's answers: class names, a local language model, or an HTTP endpoint."""

from hf_any3d.evaluation.llm_judge.base import Judge, JudgeError
from hf_any3d.evaluation.llm_judge.endpoint import EndpointJudge
from hf_any3d.evaluation.llm_judge.local_judges import ClassNameJudge, LanguageModelJudge

__all__ = ["ClassNameJudge", "EndpointJudge", "Judge", "JudgeError", "LanguageModelJudge"]

"""Judges of a model's answers: class names, a local language model, or an HTTP endpoint."""

from hf_any3d.evaluation.llm_judge.judges import ClassNameJudge, EndpointJudge, Judge, JudgeError, LanguageModelJudge

__all__ = ["ClassNameJudge", "EndpointJudge", "Judge", "JudgeError", "LanguageModelJudge"]

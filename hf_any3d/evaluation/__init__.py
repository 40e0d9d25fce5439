"""Evaluate models on point clouds: metrics of each task, and published protocols for models that answer questions."""

from hf_any3d.evaluation.caption_metrics import caption_metrics
from hf_any3d.evaluation.chat_evaluation import answer_protocols, judge_protocols
from hf_any3d.evaluation.llm_judge import ClassNameJudge, EndpointJudge, Judge, JudgeError, LanguageModelJudge
from hf_any3d.evaluation.llm_judge.verdicts import compute_figures, judge_answers, read_verdict, verdicts_path
from hf_any3d.evaluation.question_answering import PROTOCOLS, Protocol, answer_question, find_protocol, read_results

__all__ = [
    "PROTOCOLS",
    "ClassNameJudge",
    "EndpointJudge",
    "Judge",
    "JudgeError",
    "LanguageModelJudge",
    "Protocol",
    "answer_protocols",
    "answer_question",
    "caption_metrics",
    "compute_figures",
    "find_protocol",
    "judge_answers",
    "judge_protocols",
    "verdicts_path",
    "read_results",
    "read_verdict",
]

"""Judging language models that see point clouds: protocols, judges, counting and metrics of captions."""

from hf_any3d.evaluation.answering import answer_question, read_results
from hf_any3d.evaluation.caption_metrics import caption_metrics
from hf_any3d.evaluation.llm_judge import ClassNameJudge, EndpointJudge, Judge, JudgeError, LanguageModelJudge
from hf_any3d.evaluation.llm_judge.judging import figures, judge_answers, judged_name, verdict_on
from hf_any3d.evaluation.questions import PROTOCOLS, Protocol, find_protocol
from hf_any3d.evaluation.running import answer_protocols, judge_protocols

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
    "figures",
    "find_protocol",
    "judge_answers",
    "judge_protocols",
    "judged_name",
    "read_results",
    "verdict_on",
]

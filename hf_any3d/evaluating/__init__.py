"""Judging language models that see point clouds: protocols, judges, counting and metrics of captions."""

from hf_any3d.evaluating.answering import answer_question
from hf_any3d.evaluating.caption_metrics import caption_metrics
from hf_any3d.evaluating.counting import figures, verdict_on
from hf_any3d.evaluating.judges import ClassNameJudge, EndpointJudge, Judge, JudgeError, LanguageModelJudge
from hf_any3d.evaluating.judging import judge_answers, judged_name
from hf_any3d.evaluating.protocols import PROTOCOLS, Protocol, find_protocol
from hf_any3d.evaluating.result_files import read_results
from hf_any3d.evaluating.running import answer_protocols, judge_protocols

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

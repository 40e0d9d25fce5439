"""Every setting of a task is in every door where people ask, in the same limits, or the setting says why not."""

import functools
import inspect

import pytest
import typer

from hf_any3d import many_files
from hf_any3d.cli import app
from hf_any3d.registry import TASKS
from hf_any3d.tasks.answers import Answers
from hf_any3d.tasks.settings import DOORS, pipeline_arguments, setting, settings_of

SETTINGS = {name: task.settings for name, task in TASKS.items() if task.settings is not None}
CHAT = "point-cloud-text-to-text"


def options_of(*words):
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    return {parameter.name: parameter for parameter in command.params}


@functools.cache
def taken(task, door):
    """What can be given at a door: name -> (lowest, highest) if told; None if the door does not know the task."""
    unknown = (None, None)
    record = TASKS[task]
    if door == "runs" and record.rows is None:
        return None
    if door in ("command", "runs"):
        kinds = {name: getattr(option, "type", None) for name, option in options_of(record.command).items()}
        return {name: (getattr(kind, "min", None), getattr(kind, "max", None)) for name, kind in kinds.items()}
    if door == "many_files":
        if task == CHAT:
            # Further ones are arguments of `generate`.
            return dict.fromkeys([*inspect.signature(many_files.caption).parameters, "num_beams"], unknown)
        has_column = record.answers_class().feature is not Answers.feature
        return dict.fromkeys(settings_of(SETTINGS[task], door), unknown) if has_column else None
    if door == "service":
        served = pytest.importorskip("hf_any3d.serving.tasks").SETTINGS_OF
        if task == CHAT:
            from hf_any3d.serving.openai_chat import ChatRequest

            return dict.fromkeys(ChatRequest.model_fields, unknown)
        if record.route is None:
            return None
        limits = {}
        for name, field in served[record.route].model_fields.items():
            sides = {side: getattr(one, side) for one in field.metadata for side in ("ge", "le") if hasattr(one, side)}
            limits[name] = (sides.get("ge"), sides.get("le"))
        return limits
    sliders = pytest.importorskip("hf_any3d.demo.page").SLIDERS
    return dict.fromkeys([one.name for one in sliders] if task == CHAT else settings_of(SETTINGS[task], door), unknown)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("task", SETTINGS)
def test_every_setting_is_in_the_door_or_refused_with_a_reason(task, door):
    found = taken(task, door)
    for name, declared in settings_of(SETTINGS[task]).items():
        there = declared.names.get(door, name)
        if reason := declared.refused.get(door):
            assert len(reason) > 15, f"{task}, {name}: no reason why {door} does not take it"
            # A door may have it for another task, as /v1/classify serves two, and one command is for runs, too.
            others = [kind for other, kind in SETTINGS.items() if other != task and taken(other, door) == found]
            if door != "runs" and not any(name in settings_of(other, door) for other in others):
                assert there not in (found or ()), f"{task}: {door} has {there}, which the setting says it refuses"
            continue
        assert found is not None, f"{task}: {door} does not know the task; {name} says no reason"
        assert there in found, f"{task}: {door} lacks {there}; add it there, or a reason to `refused` of the setting"
        for told, own in zip(found[there], (declared.low, declared.high), strict=True):
            assert told in (None, own), f"{task}: {there} of {door} has the limits {found[there]}"


@pytest.mark.parametrize("task", SETTINGS)
def test_every_argument_of_the_pipeline_is_a_setting(task):
    pipeline = TASKS[task].pipeline_class()
    names = {declared.argument or name for name, declared in settings_of(SETTINGS[task]).items()}
    # What a pipeline writes, and what only programs ask for
    others = {"output_dir", "formats", "write", "field", "classes", "write_scores", "write_unknown"}
    others |= {"function_to_apply", "one_sided", "other_axis", "keep_labels", "patch_to_point", "none_label"}
    others |= {"chat_template", "return_full_text", "continue_final_message", "evenness"}
    for owner in pipeline.__mro__:
        if "_sanitize_parameters" in vars(owner) and owner.__module__.partition(".")[0] != "transformers":
            own = inspect.signature(vars(owner)["_sanitize_parameters"]).parameters.values()
            given = {one.name for one in own if one.kind is not one.VAR_KEYWORD} - {"self"}
            assert given <= names | others, f"{task}: {given - names - others} is no setting"
            # What it does not hand on has no arguments of its base.
            if "super()" not in inspect.getsource(vars(owner)["_sanitize_parameters"]):
                break


def test_boxes_are_chosen_by_settings_or_by_programs_alone():
    from hf_any3d.tasks.detection.pipeline import _RULES

    names = settings_of(SETTINGS["point-cloud-object-detection"])
    # Evaluation sets these, as the papers do.
    assert {*_RULES} - {*names} == {"min_objectness", "min_points", "nms_per_class", "nms_share", "scores"}


def test_settings_become_arguments_of_the_pipeline():
    kind = SETTINGS["zero-shot-point-cloud-classification"]
    given = {"labels": ("chair",), "template": None, "text_embeds": None, "top_k": None, "up_axis": None}
    assert pipeline_arguments(kind, given, "service") == {"candidate_labels": ("chair",), "top_k": None}
    with pytest.raises(ValueError, match="no door 'window'"):
        setting(1, "A number.", refused={"window": "there is none"})


@pytest.mark.parametrize(
    ("task", "given", "error"),
    [
        ("point-cloud-classification", {"top_k": 0}, "top_k is 0; expected at least 1"),
        ("point-cloud-object-detection", {"threshold": 1.5}, "threshold is 1.5; expected at most 1"),
        ("point-cloud-feature-extraction", {"feature": "all"}, "feature is 'all'; expected one of pooled"),
        ("point-cloud-segmentation", {"smooth": 1}, "no setting 'smooth'"),
        ("point-cloud-classification", {"unknown": False}, "unknown: rows have the score"),
    ],
)
def test_rows_refuse_what_is_no_setting_or_out_of_range(task, given, error, tmp_path):
    (tmp_path / "a.xyz").write_text("0 0 0\n")
    rows = many_files.read_point_clouds(tmp_path / "a.xyz")
    with pytest.raises((ValueError, TypeError), match=error):
        many_files.ask(rows, task, "nowhere/model", **given)

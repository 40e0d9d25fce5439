"""Every setting of a task is in every door where people ask for it, or the setting says why not."""

import inspect

import pytest
import typer

from hf_any3d import many_files
from hf_any3d.cli import app
from hf_any3d.registry import TASKS
from hf_any3d.tasks import DOORS, SETTINGS, pipeline_arguments, setting, settings_of

# Task -> command of `hf-any3d batch`, and function of `many_files`
BATCHES = {
    "point-cloud-classification": "predict",
    "point-cloud-feature-extraction": "embed",
    "point-cloud-object-detection": "detect",
    "point-cloud-segmentation": "segment",
    "zero-shot-point-cloud-segmentation": "segment",
}
ROWS = {
    "point-cloud-classification": many_files.classify,
    "point-cloud-feature-extraction": many_files.embed,
    "point-cloud-object-detection": many_files.detect,
}
# Settings that the page asks for -> its widgets
WIDGETS = {"labels": "words", "category": "category", "up_axis": "up_axis"}


def options_of(*words):
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    return {parameter.name for parameter in command.params}


def taken(task, door):
    """Names of what can be given at a door, None if the door does not know the task."""
    if door == "command":
        return options_of(TASKS[task].command)
    if door == "batch":
        return options_of("batch", BATCHES[task]) if task in BATCHES else None
    if door == "many_files":
        return {*inspect.signature(ROWS[task]).parameters} if task in ROWS else None
    if door == "service":
        tasks = pytest.importorskip("hf_any3d.serving.tasks")
        paths = [path for path, served in tasks.TASKS_OF.items() if task in served]
        return {*tasks.SETTINGS_OF[paths[0]].model_fields} if paths else None
    pages = pytest.importorskip("hf_any3d.demo.task_pages")
    asked = inspect.signature(pages.TaskAnswers.ask).parameters
    return {name for name, widget in WIDGETS.items() if widget in asked}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("task", SETTINGS)
def test_every_setting_is_in_the_door_or_refused_with_a_reason(task, door):
    found = taken(task, door)
    for name, declared in settings_of(SETTINGS[task]).items():
        there = declared.names.get(door, name)
        if reason := declared.refused.get(door):
            assert len(reason) > 15, f"{task}, {name}: no reason why {door} does not take it"
            # A door may have it for another task, as /v1/classify serves two.
            others = [SETTINGS[other] for other in SETTINGS if other != task and taken(other, door) == found]
            if not any(name in settings_of(other, door) for other in others):
                assert there not in (found or ()), f"{task}: {door} has {there}, which the setting says it refuses"
            continue
        assert found is not None, f"{task}: {door} does not know the task; {name} says no reason"
        assert there in found, f"{task}: {door} lacks {there}; add it there, or a reason to `refused` of the setting"


@pytest.mark.parametrize("task", SETTINGS)
def test_every_argument_of_the_pipeline_is_a_setting(task):
    from hf_any3d import pipelines

    pipeline = getattr(pipelines, TASKS[task].pipeline)
    names = {declared.argument or name for name, declared in settings_of(SETTINGS[task]).items()}
    # What a pipeline writes, and what only programs ask for
    others = {"output_dir", "formats", "write", "field", "classes", "write_scores", "write_unknown"}
    others |= {"function_to_apply", "one_sided", "patch_to_point", "none_label"}
    for owner in pipeline.__mro__:
        if "_sanitize_parameters" in vars(owner) and owner.__module__.startswith("hf_any3d.pipelines"):
            own = inspect.signature(vars(owner)["_sanitize_parameters"]).parameters.values()
            given = {one.name for one in own if one.kind is not one.VAR_KEYWORD} - {"self"}
            assert given <= names | others, f"{task}: {given - names - others} is no setting"


def test_settings_become_arguments_of_the_pipeline():
    kind = SETTINGS["zero-shot-point-cloud-classification"]
    given = {"labels": ("chair",), "template": None, "text_embeds": None, "top_k": None, "up_axis": None}
    assert pipeline_arguments(kind, given, "service") == {"candidate_labels": ("chair",), "top_k": None}
    with pytest.raises(ValueError, match="no door 'window'"):
        setting(1, "A number.", refused={"window": "there is none"})

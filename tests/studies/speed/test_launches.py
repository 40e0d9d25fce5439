"""A training step on an accelerator launches no more kernels than its budget."""

from unittest.mock import patch

import pytest

from studies.speed.any2point_wrapper import PRESETS
from studies.speed.launches import BACKWARD, FORWARD, count_compiled, count_preset

# Launches forward and backward, of the step and of the places that are this project's to mend.
BUDGETS = {
    "minilm": {
        "step": (550, 635),
        "modeling/kernels/guided_aggregation/table.py": (230, 285),
        "modeling/kernels/guided_aggregation/table_form.py": (50, 115),
        "modeling/kernels/bottleneck.py": (30, 54),
        "modeling/point_ops/geometry.py": (32, 0),
        "modeling/kernels/cells.py": (32, 0),
    },
    "clip-scan": {
        "step": (1060, 1190),
        "modeling/kernels/guided_aggregation/table.py": (445, 565),
        "modeling/kernels/guided_aggregation/table_form.py": (70, 140),
        "modeling/kernels/bottleneck.py": (60, 120),
        "modeling/any2point/point_tokenizer.py": (80, 60),
    },
}


@pytest.mark.parametrize("preset", BUDGETS)
def test_a_step_stays_within_its_budget_of_launches(preset):
    # The number of clouds changes no launch.
    step, bare = count_preset(preset, batch=2)
    found = {"step": [step.total(FORWARD), step.total(BACKWARD)]} | step.by_place()
    over = {
        place: (found[place], budget)
        for place, budget in BUDGETS[preset].items()
        if any(launches > most for launches, most in zip(found[place], budget, strict=True))
    }
    assert not over
    # Layers of an encoder launch some ten kernels forward; a counter that sees nothing would pass the budgets.
    assert bare.total(FORWARD) > 60 and bare.total(BACKWARD) > bare.total(FORWARD)


# Launches of a call, forward and backward, of each compiled region, and of the step outside of them with two layers.
COMPILED_BUDGETS = {
    "minilm": {
        "run_with_tables": (31, 52),
        "table_of_places": (23, 0),
        "fold": (4, 3),
        "Any2PointForPointCloudClassification._classify": (8, 11),
        "Any2PointModel._embed": (38, 38),
        "Any2PointModel._finish": (4, 5),
        "outside": (14, 6),
    },
    "clip-scan": {
        "run_with_tables": (37, 50),
        "table_of_places": (30, 0),
        "fold": (4, 3),
        "Any2PointForPointCloudClassification._classify": (12, 17),
        "Any2PointModel._embed": (95, 89),
        "Any2PointModel._finish": (4, 5),
        "outside": (14, 7),
    },
}


@pytest.mark.parametrize("preset", COMPILED_BUDGETS)
def test_compiled_regions_stay_within_their_budgets_of_launches(preset):
    # All layers are one region, whose inputs have a gradient of each layer.
    with patch.dict(PRESETS[preset][0], num_hidden_layers=2):
        outside, regions = count_compiled(preset, batch=2)
    found = {of.name: (of.kernels[FORWARD], of.kernels[BACKWARD]) for of in regions}
    found["outside"] = outside.total(FORWARD), outside.total(BACKWARD)
    assert found.keys() == COMPILED_BUDGETS[preset].keys()
    over = {
        name: (found[name], budget)
        for name, budget in COMPILED_BUDGETS[preset].items()
        if any(launches > most for launches, most in zip(found[name], budget, strict=True))
    }
    assert not over
    calls = {of.name: of.calls for of in regions}
    assert calls.pop("run_with_tables") == 2 and set(calls.values()) == {1}

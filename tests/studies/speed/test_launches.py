"""A training step on an accelerator launches no more kernels than its budget."""

import pytest

from studies.speed.launches import BACKWARD, FORWARD, count_preset

# Launches forward and backward, of the step and of the places that are this project's to mend.
BUDGETS = {
    "minilm": {
        "step": (550, 635),
        "modeling/kernels/guided_table.py": (220, 285),
        "hf_any3d/tuners/guided_adapter/module.py": (50, 115),
        "modeling/kernels/bottleneck.py": (30, 54),
        "modeling/point_ops/geometry.py": (32, 0),
        "modeling/kernels/cells.py": (32, 0),
    },
    "clip-scan": {
        "step": (1080, 1215),
        "modeling/kernels/guided_table.py": (435, 565),
        "hf_any3d/tuners/guided_adapter/module.py": (70, 140),
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

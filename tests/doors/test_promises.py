"""What a model of few scans promises on its card: scores as sure as it is right, and an accuracy for new objects."""

import json

import numpy as np

# What is promised does not depend on how many times each cloud is encoded, which takes nearly all of the time.
FEW = "--copies 2 --unlike 14"


def cloud(number: int) -> np.ndarray:
    """A cloud of noise, from which nothing can be learned about its class."""
    random = np.random.default_rng(number)
    return random.normal(size=(300, 3)) * random.uniform(0.5, 1.5, 3)


def metrics(shell, folder) -> dict:
    return json.loads((shell.folder / folder / "metrics.json").read_text())["metrics"]["cross-validation"]


def test_scores_of_the_saved_model_are_those_that_were_calibrated(shell):
    """From noise a linear head is very sure of new clouds; a head with the fitted temperature is not."""
    for number in range(100):
        shell.write(f"noise/{'ab'[number % 2]}/{number}.ply", cloud(number))
    for number in range(100, 130):
        shell.write(f"new/{number}.ply", cloud(number))
    done = shell(f"hf-any3d train noise {FEW} --output outputs/noise")
    assert "scores are calibrated" in done.out
    answers = json.loads(shell("hf-any3d predict new --model outputs/noise --json").out)
    scores = [answer["predictions"][0]["score"] for answer in answers]
    assert np.mean(scores) < 0.8


def test_near_duplicates_are_not_judged_by_heads_that_have_learned_them(shell):
    """Each scan is there three times, with its points in another order; which class it has is chance."""
    for number in range(24):
        for copy in range(3):
            points = np.random.default_rng(copy).permutation(cloud(number))
            shell.write(f"twins/{'ab'[number % 2]}/{number}_{copy}.ply", points)
    done = shell(f"hf-any3d train twins {FEW} --output outputs/twins")
    assert "48 near-duplicates" in done.out
    assert metrics(shell, "outputs/twins")["accuracy"] < 0.75

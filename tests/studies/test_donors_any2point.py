"""The table of the study around real encoders, from answers that are known."""

from studies.donors.any2point import report


def row(method: str, weights: str, seed: int, correct: str) -> dict:
    cell = {"seed": seed, "method": method, "shots": 0, "points": "embedded", "donor": "dinov2", "weights": weights}
    return cell | {"correct": correct, "accuracy": correct.count("1") / len(correct)}


def test_an_effect_is_of_the_same_shapes_and_seeds_with_guided_adapters_alone():
    rows = [row("guided_adapter", "pretrained", seed, "1110") for seed in (0, 1)]
    rows += [row("guided_adapter", "random", seed, "1000") for seed in (0, 1)]
    rows += [row("guided_adapter", "shuffled", 0, "1110"), row("lora", "pretrained", 0, "0000")]
    lines = report(rows).splitlines()
    assert "| dinov2 (vision) | pretrained, LoRA | 0.0 |  |" in lines
    # Differences 0, 1, 1, 0 with a variance of 1/3 between four shapes, none between seeds.
    assert "| dinov2 (vision) | 75.0 | 25.0 | 75.0 | +50.0 ± 56.6 | +0.0 ± 0.0 |" in lines

"""Two encoders compared on few scans: the one whose features tell more wins on the same draws."""

import numpy as np

from studies import compared_encoders as study
from studies.few_scans_draws import Shapes


def test_the_better_encoder_wins_by_paired_draws(tmp_path, monkeypatch):
    labels = np.repeat(np.arange(12), 30)
    shapes = Shapes(
        np.zeros((360, 4, 3)), labels, np.arange(360), tuple("abcdefghijkl"), np.tile(np.arange(30), 12) < 12
    )
    generator = np.random.default_rng(0)
    told = generator.normal(size=(12, 16))[labels]
    noise = generator.normal(size=(360, 16))
    features = {tmp_path / "one": told + 2 * noise, tmp_path / "other": told + noise}
    monkeypatch.setattr(
        study, "stored_features", lambda name, shapes, source, copies, folder, encoder: features[folder]
    )
    sets = dict.fromkeys((*study.OF_METRIC, *study.JUDGED), shapes)
    one, other = (study.accuracies(None, sets, folder, draws=3) for folder in features)
    lines = study.table(one, other).splitlines()
    assert len(lines) == 6
    for line in lines[2:]:
        name, shots, before, now, gain = line.strip("| ").split(" | ")
        assert (name, int(shots)) in one and float(now) > float(before)
        assert gain.startswith("+") and "±" in gain

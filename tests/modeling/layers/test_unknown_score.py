"""The unknown score: calibration, duplicates, saving, adapters."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from hf_any3d import (
    ActForPointCloudClassification,
    Any2PointForPointCloudClassification,
    GuidedAdapterConfig,
    PointFeaturesForPointCloudClassification,
)
from tests.common.case import varied_clouds
from tests.tiny_act import tiny_act
from tests.tiny_encoders import tiny_model
from tests.tiny_features import fitted, tiny_features

BUILDERS = {
    "act": lambda **settings: tiny_act(ActForPointCloudClassification, **settings),
    "any2point": lambda **settings: tiny_model(large_logits=True, **settings),
    "point_features": lambda **settings: tiny_features(PointFeaturesForPointCloudClassification, **settings),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BUILDERS)
def test_a_classifier_tells_after_it_is_fitted_and_saved(kind, tmp_path):
    model = BUILDERS[kind]().eval()
    clouds = varied_clouds(4)
    assert model.unknown_score is None and "unknown" not in model(clouds)
    fitted(model)
    with torch.no_grad():
        output = model(clouds)
        known = model(varied_clouds(24, seed=7)).unknown
    assert output.unknown.shape == (4,) and known.min() >= 0 and output.unknown.max() <= 1
    assert known.max() < 0.5  # the training clouds themselves, at a distance of 0
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(clouds).unknown, output.unknown)
    assert "differs from the 24 training clouds" in (tmp_path / "README.md").read_text()
    assert again.config.unknown.rows == 24 and again.config.unknown.threshold == model.config.unknown.threshold


@pytest.mark.slow
def test_a_bank_tells_what_is_as_far_from_the_known_rows_as_they_are_from_each_other(tmp_path):
    generator = torch.Generator().manual_seed(0)
    model = tiny_features(PointFeaturesForPointCloudClassification)
    width = model.config.hidden_size
    # Unknown rows and those of the bank are of another direction, at a usual distance.
    shift = torch.zeros(width)
    shift[:40] = 1.0
    known, fresh = torch.randn(2, 100, width, generator=generator)
    unknown, bank = torch.randn(2, 100, width, generator=generator) + shift
    logits = 3 * torch.randn(100, 3, generator=generator)
    shares = {}
    for name, given in (("without", None), ("with", bank)):
        model.fit_unknown_score(known, logits, bank=given)
        scores = [model.score_unknown(rows, logits) > 0.5 for rows in (fresh, unknown)]
        shares[name] = [float(score.float().mean()) for score in scores]
    assert max(share[0] for share in shares.values()) < 0.15
    assert shares["without"][1] < 0.4 and shares["with"][1] > 0.8
    assert model.config.unknown.bank_rows == 100
    model.save_pretrained(tmp_path)
    again = PointFeaturesForPointCloudClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again.score_unknown(unknown, logits), model.score_unknown(unknown, logits))
    assert "and how much it resembles 100 generated non-objects" in (tmp_path / "README.md").read_text()
    # Without one again, the score is that of the distance alone.
    model.fit_unknown_score(known, logits)
    assert model.config.unknown.bank_rows == 0 and model.unknown_score.bank is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"logits": torch.full((5, 3), torch.nan)}, "logits holds NaN"),
        ({"groups": [3] * 5}, "1 groups in 5 rows; expected at least two"),
    ],
)
def test_what_does_not_fit_is_named(given, message):
    rows = {"features": torch.randn(5, 6), "logits": torch.randn(5, 3)}
    with pytest.raises(ValueError, match=message):
        tiny_features(PointFeaturesForPointCloudClassification).fit_unknown_score(**(rows | given))


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
def test_an_adapter_stores_the_score_that_its_config_made_room_for(tmp_path):
    peft = get_peft_model(tiny_model(large_logits=True, unknown={"rows": 24}), GuidedAdapterConfig())
    assert "unknown_score" in peft.peft_config["default"].modules_to_save
    model = peft.eval().get_base_model()
    fitted(model)
    clouds = varied_clouds(4)
    with torch.no_grad():
        expected = model(clouds).unknown
    peft.save_pretrained(tmp_path)
    opened = Any2PointForPointCloudClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(opened(clouds).unknown, expected)
        base = Any2PointForPointCloudClassification.from_encoder_pretrained(config=opened.config)
        torch.testing.assert_close(PeftModel.from_pretrained(base, tmp_path).eval()(clouds).unknown, expected)

"""ReCon's part segmentation, in full size, against stored runs of the released program."""

import pytest
import torch
from torch import nn

from hf_any3d import AutoModelForPointCloudSegmentation
from tests.conversions.test_recon import ReconCase, assert_all_agree, of_kind, outputs_of
from tests.modeling.act.reference_case import without_chance


@pytest.mark.slow
@pytest.mark.parametrize("name", of_kind("partseg"))
def test_part_segmentation_computes_what_is_stored(name, tmp_path):
    case = ReconCase(name)
    model = AutoModelForPointCloudSegmentation.from_pretrained(case.converted(tmp_path))
    inputs = {"points": case.points, "category": torch.tensor(case.manifest["categories"])}
    labels = case.expected["labels"].long()
    found = {}
    for mode in ("eval.", "train."):
        if mode == "train.":
            without_chance(model)
        seen = outputs_of(model, "propagation")
        log_probabilities = model(**inputs).logits.log_softmax(dim=-1)
        loss = nn.functional.nll_loss(log_probabilities.flatten(0, 1), labels.flatten())
        found |= {f"{mode}propagated": seen["propagation"].transpose(1, 2)}
        found |= {f"{mode}log_probabilities": log_probabilities, f"{mode}loss": loss}
    loss.backward()
    assert_all_agree(case, found, "eval.", "train.")
    originals = case.renames(AutoModelForPointCloudSegmentation, tmp_path / "numbered")
    assert case.wrong_norms(model, originals) == {}

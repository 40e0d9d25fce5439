"""A training step of IDPT with parts of shapes, in full size and double precision, against the stored one."""

import pytest
import torch

from tests.modeling.act.reference_case import without_chance
from tests.tuners.idpt_parts_case import ours_of, parts_run


@pytest.mark.slow
def test_a_training_step_agrees():
    case, model = parts_run()
    model = without_chance(model.double())
    for part in model.get_base_model().act.patch_encoder.modules():
        part.train()
    output = model(
        points=case.points.double(),
        category=torch.tensor(case.manifest["object_class"]),
        labels=case.expected["target"],
    )
    torch.testing.assert_close(output.loss.float(), case.expected["train.loss"], atol=2e-5, rtol=2e-5)
    output.loss.backward()
    named, compared = dict(model.named_parameters()), 0
    for key in (key for key in case.expected if key.startswith("train.grad.")):
        name = key.removeprefix("train.grad.")
        if "dgcnn_cls" in name or name == "prompt_cls_pos":
            expected, found = case.expected[key], named[ours_of(name)].grad
            found = found.view(case.manifest["state_dict"][name][0])
            found = found[::8] if found.shape != expected.shape else found
            limit = 1e-4 * expected.abs().max().item()
            torch.testing.assert_close(found.float(), expected, atol=limit, rtol=0, msg=lambda m, k=key: k + m)
            compared += 1
    assert compared == 10
    trained = {name: weight.numel() for name, weight in model.named_parameters() if weight.requires_grad}
    # The program also counts three norms that nothing reads.
    assert sum(trained.values()) == case.manifest["trained_parameters"] - 3 * 2 * 384

"""The benchmark of exported files: its model, counts and table."""

import torch

from studies.speed import export


def test_model_is_like_the_quickstarts():
    model = export.build_quickstart_like()
    config = model.get_base_model().config
    assert (config.tokenizer, config.num_tokens, config.encoder_config.num_hidden_layers) == ("patch", 64, 1)
    with torch.no_grad():
        assert model(points=torch.rand(1, 64, 3)).logits.shape == (1, 18)


def test_differences_and_other_labels_are_counted():
    def eager(points):
        return torch.tensor([[0.0, 1.0]]).expand(len(points), -1)

    def other(points):
        return eager(points) + 0.25 if points.shape[1] < 310 else eager(points).flip(1)

    found = export.agreement(eager, other, 3)
    assert found == {"clouds": 3, "worst_difference": 1.0, "labels_that_differ": 1}

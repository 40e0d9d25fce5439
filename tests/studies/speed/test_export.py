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


def test_table_has_a_row_for_each_side():
    facts = {"MB": 12.0, "export_cpu_seconds": 9.0, "clouds": 7, "worst_difference": 2e-6, "labels_that_differ": 0}
    times = {batch: {"eager": 2.0, "onnx": 1.0} for batch in export.BATCHES}
    lines = export.table({"formats": {"onnx": facts}, "ms_per_cloud": times}).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[3] == "| onnx | 1.00 | 1.00 | 12.0 | 9 | 2.0e-06 | 0 of 7 |"

"""Compiled code checks the placeholders of a prompt, too."""

import pytest
import torch

from hf_any3d.modeling.layers.cloud_prompts import fill_placeholders


@pytest.mark.slow
def test_other_numbers_of_placeholders_are_refused():
    placeholder, embed = 7, torch.nn.Embedding(5, 4)
    input_ids, features = torch.tensor([[1, placeholder, placeholder, 2]]), torch.randn(1, 2, 4)
    compiled = torch.compile(fill_placeholders, backend="eager", fullgraph=True)
    expected = fill_placeholders(input_ids, features, embed, placeholder)
    assert torch.equal(compiled(input_ids, features, embed, placeholder), expected)
    with pytest.raises(RuntimeError, match="other than the clouds' number of placeholders"):
        compiled(input_ids, features[:, :1], embed, placeholder)

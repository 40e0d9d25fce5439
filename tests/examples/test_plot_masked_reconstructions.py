"""The pictures of a student's reconstructions of masked patches."""

import numpy as np
import pytest
import torch

from examples import plot_masked_reconstructions
from hf_any3d import PointCloudProcessor
from hf_any3d.modeling.act import ActForPreTraining
from tests.tiny_autoencoders import tiny_autoencoder
from tests.tiny_encoders import clouds


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("student")
    autoencoder = tiny_autoencoder(None)
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "decoder_num_hidden_layers": 1}
    ActForPreTraining.from_autoencoder_pretrained(autoencoder, **sizes).save_pretrained(directory)
    PointCloudProcessor(num_points=48).save_pretrained(directory)
    np.save(directory / "chair.npy", clouds(1, 60)[0].numpy())
    return directory


def test_files_give_a_page_and_scores(saved, tmp_path, capsys):
    words = [str(saved), str(saved / "chair.npy"), "--mask-ratio", "0.5"]
    pages = []
    for name in ("a", "b"):
        plot_masked_reconstructions.main([*words, "--output", str(tmp_path / f"{name}.html")])
        pages.append((tmp_path / f"{name}.html").read_text(encoding="utf-8"))
    assert "chair.npy: 3 of 6 patches" in pages[0] and pages[0] == pages[1], "the seed decides what is hidden"
    assert "chair.npy: CD-L1 of hidden patches 0." in capsys.readouterr().out

"""The pictures of a student's reconstructions of masked patches."""

import numpy as np
import pytest
import torch

from examples import plot_masked_reconstructions
from examples.plot_masked_reconstructions import reconstruct_masked
from hf_any3d import PointCloudProcessor
from hf_any3d.modeling.act import ActForPreTraining
from hf_any3d.modeling.act.masking import MASKS
from hf_any3d.modeling.point_ops import chamfer_distance
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


GROUPS, SIZE = 6, 8


STUDENT = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "decoder_num_hidden_layers": 1}


def student(**settings):
    autoencoder = tiny_autoencoder(None)
    torch.manual_seed(0)
    return ActForPreTraining.from_autoencoder_pretrained(autoencoder, **(STUDENT | settings))


def mask_of(hidden, batch=2):
    return MASKS["random"](torch.zeros(batch, GROUPS, 3), hidden, torch.Generator().manual_seed(0))


def by_place(patches):
    return patches[np.lexsort(patches.mean(axis=1).T)]


def test_patches_are_those_of_the_cloud_and_predictions_are_around_their_centers():
    model, points, mask = student(), clouds(2, 60), mask_of(4)
    cut = model.act.cut(points)
    whole = (cut.neighborhoods + cut.centers.unsqueeze(2)).numpy()
    for number, one in enumerate(reconstruct_masked(model, points, mask)):
        hidden = mask[number].numpy()
        np.testing.assert_allclose(by_place(one.hidden), by_place(whole[number][hidden]), atol=1e-6)
        np.testing.assert_allclose(by_place(one.visible), by_place(whole[number][~hidden]), atol=1e-6)
        assert one.guessed.shape == one.taught.shape == one.hidden.shape == (4, SIZE, 3)
        expected = chamfer_distance(torch.from_numpy(one.guessed), torch.from_numpy(one.hidden))
        assert one.guessed_chamfer == pytest.approx(float(expected), rel=1e-4)
        taught = torch.from_numpy(one.taught - one.hidden[:, :1])  # the first point of a patch is its center
        with torch.no_grad():
            fine = model.autoencoder(points, return_loss=False).fine[number][mask[number]]
        np.testing.assert_allclose(by_place(taught.numpy()), by_place(fine.numpy()), atol=1e-5)

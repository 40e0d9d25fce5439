"""PointGST: what its answers depend on, by default and as published, and clouds that have no proper graph."""

import pytest
import torch
from peft import get_peft_model
from transformers import pipeline

from hf_any3d import ActForPointCloudClassification, PointCloudProcessor, PointGSTConfig
from hf_any3d.modeling.point_ops.spectral import GraphSettings, graph_spectrum
from hf_any3d.tasks.asking import usual_batch_size
from hf_any3d.tuners.pointgst import layer as pointgst_layer
from hf_any3d.tuners.pointgst.layer import SpectralAdapter
from tests.tiny_act import clouds, tiny_act
from tests.tiny_encoders import tiny_model

POINTS = clouds(3, 80) * torch.tensor([1.0, 0.7, 0.4])
FORMS = {"default": PointGSTConfig, "published": PointGSTConfig.published}
BY_FORMS = pytest.mark.parametrize("form", FORMS)


def adapted(form="default", model=None, **settings):
    torch.manual_seed(4)
    base = tiny_act(ActForPointCloudClassification, **{"num_groups": 28, **(model or {})})
    return get_peft_model(base, FORMS[form](**{"r": 6, "local_size": 8, "init_weights": False, **settings})).eval()


@torch.no_grad()
def logits_of(model, points=POINTS):
    return model(points=points).logits


def moved(model, ours):
    """Largest difference of answers by the largest answer."""
    expected = logits_of(model)[: len(ours)]
    return ((ours - expected).abs().max() / expected.abs().max()).item()


def with_random_signs(monkeypatch):
    def flipped(centers, settings):
        found = graph_spectrum(centers, settings)
        generator = torch.Generator().manual_seed(3)
        signs = [torch.randint(0, 2, (len(centers), 1, centers.shape[1]), generator=generator) * 2 - 1 for _ in "ab"]
        return found._replace(whole=found.whole * signs[0], local=found.local * signs[1])

    monkeypatch.setattr(pointgst_layer, "graph_spectrum", flipped)


def test_answers_depend_on_neither_batch_nor_signs_nor_rounding(monkeypatch):
    model = adapted()
    assert moved(model, logits_of(model, POINTS[:1])) < 1e-5
    assert moved(model, logits_of(model, POINTS * 1.000001)) < 1e-3
    expected = logits_of(model)
    with_random_signs(monkeypatch)
    assert (logits_of(model) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_published_answers_depend_on_batch_and_signs(monkeypatch):
    model = adapted("published")
    assert moved(model, logits_of(model, POINTS[:1])) > 1e-3
    expected = logits_of(model)
    with_random_signs(monkeypatch)
    assert (logits_of(model) - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.slow
def test_clouds_are_processed_alone_where_predictions_depend_on_the_batch(tmp_path):
    for form, size in (("default", 8), ("published", 1)):
        adapted(form).save_pretrained(tmp_path / form)
        PointCloudProcessor(num_points=80).save_pretrained(tmp_path / form)
        opened = pipeline("point-cloud-classification", model=str(tmp_path / form))
        assert usual_batch_size(opened) == size
        card = (tmp_path / form / "README.md").read_text()
        assert ("`scale_over='batch'` reproduce" in card) == (size == 1)


@BY_FORMS
def test_a_new_adapter_changes_nothing_and_its_first_gradient_reaches_the_last_projection_alone(form):
    model = adapted(form, init_weights=True)
    assert torch.equal(logits_of(model), logits_of(model.get_base_model()))
    with model.disable_adapter():
        bare = logits_of(model)
    assert torch.equal(logits_of(model), bare)
    model.train()(points=POINTS, labels=torch.tensor([0, 1, 2])).loss.backward()
    moving = {
        n.partition("pointgst_")[2].replace(".default", "")
        for n, p in model.named_parameters()
        if "pointgst" in n and p.grad.any()
    }
    assert moving == {"up.weight", "up.bias"}


@pytest.mark.slow
@BY_FORMS
def test_points_at_the_same_place_give_finite_answers_and_leave_other_clouds_alone(form):
    points = POINTS.clone()
    points[1, 10:] = points[1, :10].repeat(7, 1)  # fewer places than groups
    points[2] = 0.2  # a single place
    model = adapted(form, scale_over="cloud", distances="exact")
    found = logits_of(model, points)
    assert found.isfinite().all()
    assert moved(model, found[:1]) < 1e-5
    model.train()(points=points, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert logits_of(adapted(form).eval(), points).isfinite().all()


@pytest.mark.parametrize("groups", [1, 3, 8, 9])
def test_few_tokens_are_smaller_graphs(groups):
    spectrum = graph_spectrum(POINTS[:, :groups], GraphSettings(8))
    one = torch.eye(groups).expand(3, -1, -1)
    for vectors in spectrum[:2]:
        torch.testing.assert_close(vectors.mT @ vectors, one)
    assert torch.equal(spectrum.local[:, 8:, :8], torch.zeros(3, max(groups - 8, 0), min(groups, 8)))
    model = adapted(model={"num_groups": groups}, local_size=8)
    assert logits_of(model).isfinite().all()


@pytest.mark.parametrize("axis", ["tokens", "batch"])
def test_the_class_token_of_an_encoder_takes_no_part_in_graphs(axis, monkeypatch):
    base = tiny_model("bert", released={"attention_axis": axis})
    model = get_peft_model(base, PointGSTConfig(r=4, local_size=8, init_weights=False)).eval()
    seen = []
    original = SpectralAdapter.added
    monkeypatch.setattr(SpectralAdapter, "added", lambda self, *args: seen.append(args) or original(self, *args))
    with torch.no_grad():
        model(points=clouds(3, 60))
    tokens, spectrum, special = seen[0]
    assert special == 1 and tokens.shape[0] == len(spectrum.whole) == 3
    assert tokens.shape[1] == 1 + spectrum.whole.shape[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transform": "inverse"}, r"transform='inverse'; expected .*'fourier'.*'published'"),
        ({"signs": "fixed"}, r"signs='fixed'; expected"),
        ({"distances": "l1"}, r"distances='l1'; expected"),
        ({"scale_over": "group"}, r"scale_over='group'; expected"),
        ({"curve_cell": 0.0}, r"curve_cell=0.0; expected"),
        ({"transform": "published"}, r"signs='averaged' with transform='published'.*use signs='solver'"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PointGSTConfig(**settings)

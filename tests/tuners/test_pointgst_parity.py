"""PointGST against stored runs of the released program, with the eigenvectors that its solver returned."""

import json
import re

import pytest
import torch
from peft import get_peft_model

from hf_any3d import ActConfig, ActForPointCloudClassification, PointGSTConfig
from hf_any3d.modeling.point_ops.spectral import (
    GraphSettings,
    Spectrum,
    curve_keys,
    graph_laplacian,
    graph_spectrum,
    pair_distances,
    smallest_distance,
)
from hf_any3d.tuners.pointgst import layer as pointgst_layer
from hf_any3d.tuners.pointgst.layer import SpectralAdapter
from tests.modeling.act.reference_case import without_chance
from tests.tuners.peft_case import FOLDER, PeftCase, ours_of_base

CASES = {"peft_pgst": {"r": 6, "local_size": 8}, "peft_pgst_64": {"r": 8, "local_size": 32}}


def ours_of(name: str) -> str:
    """Our name of a trained tensor of the released program."""
    match = re.fullmatch(r"blocks\.blocks\.(\d+)\.gft_adapter\.(\w+)\.(\w+)", name)
    if match is None:
        return ours_of_base(name)
    layer, part, leaf = match.groups()
    return f"base_model.model.act.blocks.layers.{layer}.pointgst_{part}.default.{leaf}"


def blocks(vectors: torch.Tensor) -> torch.Tensor:
    """Matrices `(batch, groups, size, size)` on the diagonal of one for each cloud."""
    return torch.stack([torch.block_diag(*own) for own in vectors])


class Run:
    """A case, our model with its weights, and its eigenvectors."""

    def __init__(self, name, monkeypatch):
        self.case = PeftCase(name)
        order = self.case.expected["order"]
        whole, local = self.case.expected["U"], blocks(self.case.expected["sub_U"])
        spectrum = Spectrum(whole, local, order.argsort(dim=1))
        self.centers = []
        monkeypatch.setattr(
            pointgst_layer, "graph_spectrum", lambda centers, settings: self.centers.append(centers) or spectrum
        )
        self.settings = CASES[name]

    def model(self, **settings):
        base = self.case.base("gft_adapter")
        config = PointGSTConfig.published(modules_to_save=["class_token", "classifier"], **self.settings, **settings)
        model = get_peft_model(base, config)
        named = dict(model.named_parameters())
        own = [name for name in self.case.original if "gft_adapter" in name]
        assert sum("pointgst" in name for name in named) == len(own)
        with torch.no_grad():
            for name in own:
                named[ours_of(name)].copy_(self.case.original[name])
        return model.eval()


@pytest.fixture(params=CASES)
def run(request, monkeypatch):
    return Run(request.param, monkeypatch)


def layers_of(model):
    return list(model.get_base_model().act.blocks.layers)


def record(monkeypatch):
    """Keep the input and output of each call of an adapter."""
    calls, original = [], SpectralAdapter.added

    def added(self, hidden_states, *args):
        calls.append((hidden_states, original(self, hidden_states, *args)))
        return calls[-1][1]

    monkeypatch.setattr(SpectralAdapter, "added", added)
    return calls


@torch.no_grad()
def test_every_stored_tensor_agrees(run, monkeypatch):
    case, model, calls = run.case, run.model(), record(monkeypatch)
    found, core = {}, model.get_base_model().act
    for number, layer in enumerate(layers_of(model)):
        layer.register_forward_hook(
            lambda module, args, out, number=number: found.update({f"eval.block{number}_output": out})
        )
    core.patch_encoder.register_forward_hook(lambda module, args, out: found.update({"eval.tokens": out}))
    core.register_forward_hook(lambda module, args, out: found.update({"eval.feature": out.pooler_output}))
    found["eval.logits"] = model(points=case.points).logits
    for number, (given, out) in enumerate(calls):
        found[f"eval.adapter{number}_input"], found[f"eval.adapter{number}_output"] = given, out
    stored = {key for key in case.expected if key.startswith("eval.")}
    assert stored <= found.keys() and len(stored) >= 7
    for key in stored:
        case.check(key, found[key])
    (centers,) = run.centers  # one computation for both layers
    case.check("center", centers)
    assert torch.equal(curve_keys(centers, 0.01).argsort(dim=1, stable=True), case.expected["order"])


@pytest.mark.slow
@torch.no_grad()
def test_other_forms_agree(run, monkeypatch):
    case, calls = run.case, record(monkeypatch)
    model = run.model(transform="fourier")
    case.check("transposed.logits", model(points=case.points).logits)
    case.check("transposed.adapter0_output", calls[0][1])
    for settings in ({}, {"transform": "fourier"}, {"transform": "fourier", "signs": "averaged"}):
        model = run.model(**settings)
        for layer in layers_of(model):
            layer.pointgst_adapt1["default"].weight.zero_()
            layer.pointgst_adapt1["default"].bias.zero_()
        case.check("adapt1_zero.logits", model(points=case.points).logits)
    for layer in layers_of(model):
        layer.pointgst_up["default"].weight.zero_()
        layer.pointgst_up["default"].bias.zero_()
    case.check("up_zero.logits", model(points=case.points).logits)


@pytest.mark.parametrize("mode", ["train", "train_frozen_stats"])
def test_a_backward_pass_agrees(run, mode):
    case, model = run.case, run.model()
    without_chance(model)
    if mode == "train":  # the released program trains with the statistics of the batch, which then drift
        encoder = model.get_base_model().act.patch_encoder
        for norm in (encoder.lift_norm, encoder.join_norm):
            norm.training = True
    output = model(points=case.points, labels=torch.tensor(case.manifest["labels"]))
    case.check(f"{mode}.logits", output.logits)
    case.check(f"{mode}.loss", output.loss)
    output.loss.backward()
    case.check_gradients(mode, model, ours_of)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == {ours_of(name) for name in case.manifest["trained"]}
    assert sum(trained.values()) == case.manifest["trained_parameters"]


def test_spectral_quantities_agree():
    case = PeftCase("peft_pgst_spectrum")
    centers, expected = case.points, case.expected

    def check(key, ours):
        torch.testing.assert_close(
            ours.float(), expected[key], atol=2e-5, rtol=2e-4, msg=lambda text: f"{key}: {text}"
        )

    keys = curve_keys(centers, 0.01)
    assert torch.equal(keys, expected["key"])
    order = keys.argsort(dim=1, stable=True)
    assert torch.equal(order, expected["order"])
    distance = pair_distances(centers)
    check("smallest_distance", smallest_distance(distance).flatten())
    scale = smallest_distance(distance, "batch")
    laplacian = graph_laplacian(distance, scale)
    check("laplacian", laplacian)
    check("eigenvalues", torch.linalg.eigvalsh(laplacian))
    alone = graph_laplacian(distance, smallest_distance(distance))
    check("alone_eigenvalues", torch.linalg.eigvalsh(alone))

    settings = GraphSettings(32, scale_over="batch", curve_cell=0.01)
    spectrum = graph_spectrum(centers, settings)
    assert torch.equal(spectrum.inverse, expected["inverse"])
    for count in (1, 4):
        lowest = spectrum.whole[..., :count]
        check(f"projector{count}", lowest @ lowest.mT)
    # By the stored eigenvalues, since signs and the bases of equal ones are the solver's.
    heat = spectrum.whole * expected["eigenvalues"].mul(-4).exp().unsqueeze(1) @ spectrum.whole.mT
    check("heat", heat)
    local = torch.stack([spectrum.local[:, a : a + 32, a : a + 32] for a in (0, 32)], dim=1)
    assert torch.equal(blocks(local), spectrum.local)
    check("local_heat", local * expected["local_eigenvalues"].mul(-4).exp().unsqueeze(2) @ local.mT)
    check("local_projector1", local[..., :1] @ local[..., :1].mT)


@pytest.mark.parametrize(("case", "changes"), [("scan", {"num_labels": 15}), ("modelnet", {"num_labels": 40})])
def test_the_released_size_trains_as_many_parameters(case, changes):
    manifest = json.loads((FOLDER / f"peft_released_pgst_{case}.json").read_text())
    with torch.device("meta"):
        base = ActForPointCloudClassification(ActConfig(head_widths=(256, 256), **changes))
        model = get_peft_model(base, PointGSTConfig(modules_to_save=["class_token", "classifier"]))
    trained = {name: weight.numel() for name, weight in model.named_parameters() if weight.requires_grad}
    assert sum(trained.values()) == manifest["trained_parameters"]
    assert sum(count for name, count in trained.items() if "pointgst" in name) == manifest["adapter_parameters"]
    assert trained.keys() == {ours_of(name) for name in manifest["trained_tensors"]}

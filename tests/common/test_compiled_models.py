"""Base models and encoders of other libraries compile without graph breaks, and encoders are exported."""

import pytest
import torch

from tests.common.built import answer, expected_of, forget_models as forget_models, fresh
from tests.common.models import CASES, relative_difference
from tests.common.refusals import check_refusal
from tests.common.test_every_encoder import PLACES, check_way
from tests.common.test_models import WITH_HEAD
from tests.tiny_encoders import clouds
from tests.turns import ALL_PAIRS

pytestmark = pytest.mark.filterwarnings("ignore")

# A compiler traces the tokens and layers of these in larger ones: in MiniGPT3DModel, in ActModel, and with adapter and
# head in tests/modeling/any2point/test_compiled.py.
_IN_OTHERS = ("NormedPhiModel", "OpenShapeModel", "PatchAlign3DModel", "PointTokenizerModel", "Any2PointModel")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case not in WITH_HEAD and (ALL_PAIRS or case.name not in _IN_OTHERS)],
    ids=lambda case: case.name,
)
def test_a_base_model_compiles(case):
    torch.compiler.reset()
    model = fresh(case)
    with check_refusal("torch.compile", case.name) as is_supported:
        made = answer(case, torch.compile(model, backend="eager", fullgraph=True))
    if is_supported:
        assert relative_difference(made, expected_of(case)) < 1e-4


def compiled(model, to):
    return torch.compile(model, backend="eager", fullgraph=True)


def exported(model, to):
    model(clouds())
    return torch.export.export(model, (clouds(),), strict=False).module()


@pytest.mark.slow
@pytest.mark.parametrize("way", [compiled, exported])
@pytest.mark.parametrize("model_type", PLACES)
@torch.no_grad()
def test_an_encoder_of_another_library_is_compiled_and_exported(model_type, way, tmp_path):
    check_way(model_type, way, tmp_path)

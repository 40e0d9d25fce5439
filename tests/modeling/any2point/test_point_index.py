"""Centers and neighbors that are computed where batches are made, instead of in the model."""

import pytest
import torch
from torch.utils.data import DataLoader

from hf_any3d.data import PointCloudCollator
from hf_any3d.data.transforms import Jitter
from hf_any3d.modeling.act import ActForPointCloudClassification
from hf_any3d.modeling.any2point import PointIndexer
from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.trainer import PointTrainer
from tests.errors import raises
from tests.tiny_act import tiny_act
from tests.tiny_encoders import clouds, tiny_model


@pytest.fixture(scope="module", params=["point_pn", "patch"])
def model(request):
    return tiny_model("bert", tokenizer=request.param).eval()


@pytest.mark.slow
def test_results_equal_those_of_the_model_that_indexes_itself(model):
    points = clouds()
    with torch.no_grad():
        expected = model(points=points).logits
        made = model(points=points, point_index=PointIndexer(model.config)(points)).logits
    assert torch.equal(made, expected)


@pytest.mark.slow
def test_workers_index_clouds_after_their_augmentation(model):
    rows = [{"points": cloud.numpy(), "label": number} for number, cloud in enumerate(clouds())]
    collate = PointCloudCollator(transform=Jitter(), indexer=PointIndexer(model.config))
    (batch,) = DataLoader(rows, batch_size=len(rows), collate_fn=collate, num_workers=1)
    assert not torch.equal(batch["points"], clouds())
    with torch.no_grad():
        expected = model(points=batch["points"], labels=batch["labels"]).loss
        assert torch.equal(model(**batch).loss, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index | {"center_positions": index["center_positions"] + 0.01}, "after any augmentation"),
        (lambda index: index | {"centers": index["centers"][:, 1:]}, r"centers has shape .*; expected \(3, "),
    ],
)
def test_an_index_of_other_points_or_settings_is_refused(model, change, message):
    index = PointIndexer(model.config)(clouds())
    with pytest.raises(ValueError, match=message):
        model(points=clouds(), point_index=change(index))


def test_neighbors_that_do_not_exist_and_clouds_that_are_too_small_are_refused(model):
    index = PointIndexer(model.config)(clouds())
    index["neighbors"][0][0, 0, 0] = clouds().shape[1]
    with raises(IndexError, naming="expected 0 to"):
        model(points=clouds(), point_index=index)
    with raises(ValueError, naming="expected 1 to 4"):
        PointIndexer(model.config)(clouds()[:, :4])


@pytest.mark.slow
def test_the_trainer_indexes_in_its_collator_where_the_model_supports_it(model, tmp_path):
    still = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"}
    arguments = PointTrainingArguments(str(tmp_path), index_in_workers=True, use_cpu=True, **still)
    trainer = PointTrainer(model, arguments, data_collator=PointCloudCollator())
    batch = trainer.data_collator([{"points": cloud.numpy(), "label": 0} for cloud in clouds()])
    assert trainer.compute_loss(model, dict(batch)) == model(**batch).loss
    with raises(ValueError, naming="--index_in_workers"):
        PointTrainer(tiny_act(ActForPointCloudClassification), arguments, data_collator=PointCloudCollator())

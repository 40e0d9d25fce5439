"""Reports of training runs."""

import pytest
import torch

from hf_any3d.model_card.run_report import RunReport, count_parameters, peak_memory
from tests.errors import raises
from tests.forks import results_of


def test_shared_weights_count_once():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    assert count_parameters(model) == (9 + 3, 9 + 3 + 3)


@pytest.mark.slow
def test_peak_memory_is_in_bytes():
    # In a new process: the peak of the test process is already higher.
    def peaks() -> tuple[int, int]:
        before = peak_memory()["process"]
        held = bytearray(b"x") * 600_000_000
        del held
        return before, peak_memory()["process"]

    ((before, after),) = results_of(peaks)
    assert 500_000_000 < after - before < 700_000_000


def test_error_names_a_file_that_is_not_a_report(tmp_path):
    (tmp_path / "metrics.json").write_text('{"accuracy": 1}')
    with raises(ValueError, naming="metrics.json"):
        RunReport.load(tmp_path / "metrics.json")


def test_a_report_is_read_as_it_was_saved(tmp_path):
    metrics = ({"f": {"g": 0.5}}, {"h": {"i": 1.0}})
    report = RunReport({"a": 1}, {"b": 2}, {"c": 3}, 4, 5, {"d": 6.5}, {"e": 7}, *metrics, {}, {"j": 8})
    assert report.versions["torch"] == torch.__version__ and report.start == {}
    path = report.save(tmp_path / "new" / "metrics.json")
    assert RunReport.load(str(path)) == report and RunReport.load(path).trained_parameters == 4
    path.write_text("{")
    with raises(ValueError, naming="metrics.json"):
        RunReport.load(path)

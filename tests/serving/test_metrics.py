"""Figures of a service: what is counted in which bucket."""

from prometheus_client.parser import text_string_to_metric_families

from hf_any3d.serving.metrics import Metrics


def buckets(metrics: Metrics, name: str) -> dict[float, float]:
    """Return the counts of a histogram by the upper bound of its buckets."""
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name == f"hf_any3d_{name}_bucket"
    }


def test_batches_are_counted_by_sizes_that_double():
    metrics = Metrics()
    for size in (1, 2, 3, 64, 65):
        metrics.observe_batch(size, 0.2)
    assert buckets(metrics, "batch_size") == {1: 1, 2: 2, 4: 3, 8: 3, 16: 3, 32: 3, 64: 4, float("inf"): 5}


def test_times_are_counted_from_milliseconds_to_a_minute():
    metrics = Metrics()
    metrics.observe_batch(1, 0.2)
    metrics.requests.labels("/predict", "200").inc()
    metrics.seconds.labels("/predict").observe(0.004)
    for name, least in (("batch_seconds", 0.2), ("request_seconds", 0.004)):
        found = buckets(metrics, name)
        assert {bound: bound >= least for bound in found} == found
        *bounds, last = found
        assert (bounds[0], bounds[-1], last) == (0.005, 60, float("inf"))
        # A percentile read from buckets is off by no more than these steps.
        assert all(1 < high / low <= 3 for low, high in zip(bounds, bounds[1:], strict=False))


def test_each_service_has_figures_of_its_own():
    busy, idle = Metrics(), Metrics()
    busy.points.inc(100)
    assert b"hf_any3d_points_total 100.0" in busy.text() and b"hf_any3d_points_total 0.0" in idle.text()

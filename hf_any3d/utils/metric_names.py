"""Names of metrics as people read them, and their values."""

from hf_any3d.utils.messages import percent

# Those that are not the names in JSON with spaces
_SHARES = {
    "mean_iou": "mean IoU",
    "mean_iou_low": "mean IoU, lower end (95 %)",
    "mean_iou_high": "mean IoU, upper end (95 %)",
    "instance_miou": "instance mIoU",
    "category_miou": "category mIoU",
    "f_score": "F-score",
    "map_25": "mAP@25",
    "map_50": "mAP@50",
    "recall_25": "recall@25",
    "recall_50": "recall@50",
}
_DISTANCES = {"chamfer_l1": "Chamfer distance (L1)", "chamfer_l2": "Chamfer distance (L2)"}
# Numbers of clouds, codes, places or files
_COUNTS = ("codes_used", "none_of_these", "places", "tiles")


def metric_name(name: str) -> str:
    """Return the name of a metric for people."""
    return (_SHARES | _DISTANCES).get(name, name.replace("_", " "))


def metric_value(name: str, value: float) -> str:
    """Return the value of a metric with its unit: shares in percent, numbers of clouds or codes without decimals."""
    if name in _SHARES or name.endswith("accuracy"):
        return f"{percent(value, 2)} %"
    decimals = 0 if name in _COUNTS or abs(value) >= 1000 else 4
    return f"{value:,.{decimals}f}"

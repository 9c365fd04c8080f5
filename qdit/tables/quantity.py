"""How a column of numbers is named and printed: label with direction, unit, digits.

A metric is `<stem>` or `<stem>_<extractor>`; the extractor stays in the label, because `fid_lite0` is not an FID.
Where a table holds several settings or references of a metric, `@` and their digest follow. A newer metric says itself
how it is shown, and its record keeps that (`qdit.eval.base.Shown`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_STEMS = {  # stem: (label, unit, factor, decimals)
    "sqnr": ("SQNR", " (dB)", 1.0, 1),
    "psnr": ("PSNR", " (dB)", 1.0, 1),
    "ssim": ("SSIM", "", 1.0, 3),
    "fid": ("FID", "", 1.0, 2),
    "sfid": ("sFID", "", 1.0, 2),
    "is": ("IS", "", 1.0, 2),
    "kid": ("KID", "·10³", 1e3, 2),
    "precision": ("Precision", "", 1.0, 3),
    "recall": ("Recall", "", 1.0, 3),
}
_COSTS = {  # column: (label, decimals)
    "weight_bits": ("W bits (model)", 2),
    "weight_bits_quantized": ("W bits (quantized)", 2),
    "weight_bits_used": ("W bits (a step)", 2),
    "input_bits": ("A bits", 2),
    "model_mb": ("MB", 2),
    "gbops": ("GBOPs", 1),
    "samples_per_second": ("samples/s", 1),
    "seconds_quantize": ("quantization (s)", 1),
    "peak_memory_mb": ("peak MB", 0),
    "resident_mb": ("MB while it runs", 2),
    "executed": ("executed", 0),
}
STEMS = tuple(_STEMS)
APART = "@"


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A column to show: `column` of the summary, its printed label, factor and decimals."""

    column: str
    label: str
    decimals: int
    factor: float = 1.0
    higher_is_better: bool | None = None
    is_delta: bool = False


def stem(metric: str) -> str:
    """Return the metric's name without its extractor: `fid` of `fid_lite0`."""
    return plain(metric).split("_")[0]


def plain(metric: str) -> str:
    """Return the metric's name without its settings: `fid_lite0` of `fid_lite0@1a2b3c4d`."""
    return metric.split(APART)[0]


def rank(metric: str) -> int:
    """Return where a metric stands among others: in the order of the known stems, and behind them otherwise."""
    return STEMS.index(stem(metric)) if stem(metric) in STEMS else len(STEMS)


def metric_quantity(metric: str, higher_is_better: bool | None, shown: Mapping[str, Any] | None = None) -> Quantity:
    """Return how a metric is shown: as its record says, else by its stem; an unknown one by its name, in 3 decimals."""
    name, unit, factor, decimals = _STEMS.get(stem(metric), (stem(metric), "", 1.0, 3))
    name += metric[len(stem(metric)) :]  # the extractor, and settings
    if shown:
        own = shown.get("label")
        name = f"{own}{metric[len(plain(metric)) :]}" if own else metric
        unit, factor, decimals = (
            shown.get(key, other) for key, other in (("unit", ""), ("factor", 1.0), ("digits", 3))
        )
    arrow = {True: " ↑", False: " ↓", None: ""}[higher_is_better]
    label = f"{name}{unit}{arrow}"
    return Quantity(column=metric, label=label, decimals=decimals, factor=factor, higher_is_better=higher_is_better)


def delta_quantity(metric: str, higher_is_better: bool | None, shown: Mapping[str, Any] | None = None) -> Quantity:
    """Return how the paired difference of a metric to full precision is shown."""
    value = metric_quantity(metric, higher_is_better, shown)
    return Quantity(
        column=f"{metric}_delta", label=f"Δ{value.label}", decimals=value.decimals, factor=value.factor,
        higher_is_better=higher_is_better, is_delta=True,
    )  # fmt: skip


def cost_quantity(column: str) -> Quantity:
    """Return how a column of the cost ledger is shown."""
    label, decimals = _COSTS.get(column, (column, 1))
    return Quantity(column=column, label=label, decimals=decimals)


def show(value: float, error: float | None, quantity: Quantity) -> str:
    """Print `value ± error` in the quantity's unit, with up to three decimals more where the error would be 0."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    scaled = value * quantity.factor
    decimals = quantity.decimals
    if error is None:
        return f"{scaled:.{decimals}f}"
    spread = error * quantity.factor
    while 0 < spread < 0.5 * 10**-decimals and decimals < quantity.decimals + 3:
        decimals += 1
    return f"{scaled:.{decimals}f} ± {spread:.{decimals}f}"

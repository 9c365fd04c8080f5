"""Where a run is reported besides its record: nowhere, a CSV file in its folder, or Weights & Biases.

A logger is a config object; `open` starts one tracker for one run. Nothing else in qdit imports wandb, and this package
does so only when a tracker is opened. The record of a run is its result.json, and what is sent to a logger is a copy.
So a run never fails for want of a key or a network, but is recorded offline, and no exception of a logger reaches a run
(`reporting`). Left out: W&B sweeps (Hydra's are used) and artifacts as inputs.
"""

from qdit.tracking.base import Logger, NoTracker, Tracker, Values, compared, reported, reporting
from qdit.tracking.csv_file import CsvTracker
from qdit.tracking.weights_and_biases import WandbTracker

__all__ = [
    "CsvTracker",
    "Logger",
    "NoTracker",
    "Tracker",
    "Values",
    "WandbTracker",
    "compared",
    "reported",
    "reporting",
]

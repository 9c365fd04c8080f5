"""The data behind a study's figures: a row per method and bit-width, averaged over seeds, under one protocol."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from qdit.errors import UserError
from qdit.plots.style import family_colour, look
from qdit.storage.run_folder import IMAGES
from qdit.storage.seal import Broken, check_tensors
from qdit.tables import families, select
from qdit.tables.records import read_record
from qdit.tables.summary import ROWS, Summary, names_of, summarise


@dataclass(frozen=True)
class Study:
    """The finished rows of a study, quantized and in full precision."""

    summary: Summary
    rows: list[select.Row]
    """Quantized, in the order of the table: by family, then as tables sort methods."""
    full: select.Row | None
    names: dict[int, str] = field(default_factory=dict)
    """What a method is called, by `id` of its row: the quantizer, and whatever else tells it from its namesakes."""

    @property
    def bits(self) -> list[str]:
        """The bit-widths, from high to low."""
        return sorted({row["bits"] for row in self.rows}, key=lambda bits: select.sort_key("bits", bits))

    def at(self, bits: str) -> dict[str, select.Row]:
        """The rows of a bit-width by the names of their methods."""
        return {self.names[id(row)]: row for row in self.rows if row["bits"] == bits}

    def methods(self) -> dict[str, list[select.Row]]:
        """The rows of each method, from high bits to low."""
        found: dict[str, list[select.Row]] = {}
        for row in self.rows:
            found.setdefault(self.names[id(row)], []).append(row)
        return {
            name: sorted(rows, key=lambda row: select.sort_key("bits", row["bits"])) for name, rows in found.items()
        }

    def colour(self, row: select.Row) -> str:
        """The colour of a row: its family's, or, where there is one family only, its method's."""
        if len({each["family"] for each in self.rows}) > 1:
            return family_colour(row["family"])
        return look(list(dict.fromkeys(self.names.values())).index(self.names[id(row)]))[0]

    def busiest(self) -> str:
        """The bit-width with the most methods; of several the lower, where methods differ more."""
        return max(self.bits, key=lambda bits: (len(self.at(bits)), self.bits.index(bits)))


def study_of(frame: pd.DataFrame) -> Study:
    """Return what the figures of a study draw.

    Raises:
        UserError: the runs were made under several protocols, or none is finished.
    """
    summary = summarise(frame, ROWS)
    rows = [row for row in summary.rows if row["runs"]]
    quantized = [row for row in rows if row["quantizer"] != select.FULL_PRECISION]
    if not quantized:
        raise UserError("no quantized run is finished, so that there is nothing to draw")
    quantized.sort(key=lambda row: families.rank(row["family"]))
    full = next((row for row in rows if row["quantizer"] == select.FULL_PRECISION), None)
    return Study(summary, quantized, full, names_of(summary, quantized))


def curve(row: select.Row, name: str) -> dict[str, Any] | None:
    """Return a curve of the first run of a row, from its record; None where it has none."""
    record = read_record(Path(first_run(row)["folder"]) / "result.json")
    found = ((record or {}).get("curves") or {}).get(name)
    return found if found and len(found["x"]) else None


def images(row: select.Row) -> tuple[NDArray[np.uint8], list[str]] | None:
    """Return the images [n, 3, H, W] that the first run of a row kept, and their captions; None where it kept none."""
    path = Path(first_run(row)["folder"]) / IMAGES
    try:
        _, about = check_tensors(path)
        with safe_open(path, "np") as file:
            return file.get_tensor("images"), _captions(about.get("captions", "[]"))
    except (OSError, SafetensorError, Broken, ValueError, RecursionError):
        return None


def _captions(text: str) -> list[str]:
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError("captions are a list")
    return [str(each) for each in found]


def first_run(row: select.Row) -> select.Row:
    """The run of a row whose samples and curves are shown: of the first seed, and of the first calibration set."""
    runs: Sequence[select.Row] = row["runs"]
    return min(runs, key=lambda run: (run["seed"], run.get("calibration.seed") or 0))

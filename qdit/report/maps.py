"""Where the error comes from: a row a method, a column a timestep or a layer, from the records of the rows."""

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from qdit.plots.charts import CURVE

Record = Mapping[str, Any]
Map = dict[str, Any]
"""`columns` (of each: `name`, and `group`, under which neighbours stand), `rows` (values by number of the row, None
where there is none) and `label`."""


def over_time(records: Mapping[int, Record]) -> Map | None:
    """The error at each timestep, in the order of sampling, of the rows that have the steps of the first.

    Args:
        records: by number of the row.
    """
    curves = {number: found for number, each in records.items() if (found := (each.get("curves") or {}).get(CURVE))}
    curves = {number: found for number, found in curves.items() if found.get("x")}
    if not curves:
        return None
    first = next(iter(curves.values()))
    columns = [{"name": f"{first.get('xlabel') or 'timestep'} {step:g}", "group": f"{step:g}"} for step in first["x"]]
    rows = {number: _rounded(found["y"]) for number, found in curves.items() if found["x"] == first["x"]}
    return {"columns": columns, "rows": rows, "label": first.get("ylabel") or "SQNR (dB)"}


def by_layer(records: Mapping[int, Record]) -> Map | None:
    """The error of each layer's output, block by block.

    Args:
        records: by number of the row.
    """
    columns: dict[str, dict[str, Any]] = {}
    found: dict[int, dict[str, Any]] = {}
    for number, record in records.items():
        for layer in record.get("layers") or []:
            if isinstance(layer, dict) and isinstance(site := layer.get("site"), str) and layer.get("sqnr") is not None:
                block, role = layer.get("block"), layer.get("role")
                group = "outside" if block is None else str(block)
                depth = (0, block) if isinstance(block, int) else (1, 0)
                columns.setdefault(site, {"name": f"{site} ({role})", "group": group, "depth": depth})
                found.setdefault(number, {})[site] = layer["sqnr"]
    if not found:
        return None
    sites = sorted(columns, key=lambda site: columns[site].pop("depth"))  # methods quantize different layers
    rows = {number: _rounded(values.get(site) for site in sites) for number, values in found.items()}
    return {"columns": [columns[site] for site in sites], "rows": rows, "label": "SQNR of the layer's output (dB)"}


def _rounded(values: Iterable[Any]) -> list[float | None]:
    """Values in one decimal; None for what is no finite number."""
    return [round(each, 1) if isinstance(each, int | float) and isfinite(each) else None for each in values]

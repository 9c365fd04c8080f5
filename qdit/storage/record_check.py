"""Check that a record has the types that tables and figures expect, so that a bad one is skipped.

Missing fields are allowed: failed runs have no metrics, and older versions wrote less. Imports no torch.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from math import isfinite, isnan
from typing import Any

from qdit.storage.reading import levels

Check = Callable[[Any], bool]
DEEPEST = 24
"""Levels of lists and mappings; records have seven."""


def wrong(record: dict[str, Any]) -> str | None:
    """The first thing in a record of this schema that is not as `qdit` writes it; None if all is well."""
    if any(True for _ in islice(levels(record), DEEPEST + 1, None)):
        return f"nested deeper than {DEEPEST} levels"
    return next(_problems(record), None)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    """Whether a value is a finite number, which a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isfinite(value) if isinstance(value, float) else abs(value) < 2**1023


def _count(value: Any) -> bool:
    """Whether a value is a number of digits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 20


def _value(value: Any) -> bool:
    """Whether a value is a number; a ratio of what does not differ is infinite."""
    return _number(value) or (isinstance(value, float) and not isnan(value))


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _list(value: Any) -> bool:
    return isinstance(value, list)


def _simple(value: Any) -> bool:
    return value is None or _text(value) or _flag(value) or _number(value)


def _plain(value: Any) -> bool:
    """Whether a value can stand in a config under its dotted key: no mapping but an empty one."""
    return _simple(value) or value == {} or (_list(value) and all(map(_within_list, value)))


def _within_list(value: Any) -> bool:
    return _simple(value) or (all(map(_within_list, value.values() if _mapping(value) else value)))


_WHAT: dict[Check, str] = {
    _text: "text",
    _number: "a finite number",
    _count: "a small count",
    _value: "a number",
    _flag: "true or false",
    _mapping: "a mapping",
    _list: "a list",
    _plain: "a plain value",
}
_RECORD: dict[str, Check] = {  # None is as good as missing in all of them
    **dict.fromkeys(("status", "error", "error_kind", "update_error", "study", "name", "run_id"), _text),
    **dict.fromkeys(("protocol", "protocol_id", "started", "finished"), _text),
    **dict.fromkeys(("config", "cost", "git", "metrics", "curves", "inapplicable"), _mapping),
    **{"seed": _number, "layers": _list},
}
_CONFIG: dict[str, Check] = dict.fromkeys(("quantizer.name", "bits.name", "quantizer.family", "dataset.name"), _text)
_METRIC: dict[str, Check] = {
    **dict.fromkeys(("value", "stderr", "delta", "delta_stderr"), _value),
    **{"n": _number, "higher_is_better": _flag, "settings": _text},
    **{"clusters": _number, "by_frame": _list, "shown": _mapping, "protocol": _text},
}
_SHOWN: dict[str, Check] = {"label": _text, "unit": _text, "digits": _count, "factor": _number}
_COST: dict[str, Check] = {
    **dict.fromkeys(
        ("weight_bits_model", "weight_bits_quantized", "weight_bits_used", "input_bits", "model_bytes", "bops"), _number
    ),
    **dict.fromkeys(("samples_per_second", "peak_memory_bytes", "resident_bytes"), _number),
    **{"executed": _text, "executed_layers": _mapping, "seconds": _mapping},
}
_CURVE: dict[str, Check] = {"x": _list, "y": _list, "xlabel": _text, "ylabel": _text}


def _problems(record: dict[str, Any]) -> Iterator[str]:
    yield from _of(record, "", _RECORD)
    if record.get("status") not in ("done", "failed"):
        yield f"status={record.get('status')!r}; done or failed is needed"
    config, cost = record.get("config") or {}, record.get("cost") or {}
    yield from _of(config, "config.", dict.fromkeys(config, _plain) | _CONFIG)
    yield from _of(cost, "cost.", _COST)
    seconds = cost.get("seconds") or {}
    yield from _of(seconds, "cost.seconds.", dict.fromkeys(seconds, _number))
    yield from _of(record.get("git") or {}, "git.", {"commit": _text})
    for name, metric in (record.get("metrics") or {}).items():
        yield from _of({name: metric}, "metrics.", {name: _mapping})
        yield from _of(metric or {}, f"metrics.{name}.", _METRIC)
        yield from _of((metric or {}).get("shown") or {}, f"metrics.{name}.shown.", _SHOWN)
        if not all(map(_value, (metric or {}).get("by_frame") or [])):
            yield f"metrics.{name}.by_frame has no number for each frame"
    for name, curve in (record.get("curves") or {}).items():
        yield from _of({name: curve}, "curves.", {name: _mapping})
        yield from _curve(curve or {}, f"curves.{name}")


def _of(values: dict[str, Any], where: str, checks: dict[str, Check]) -> Iterator[str]:
    """What is neither missing nor as it should be."""
    for key, check in checks.items():
        value = values.get(key)
        if value is not None and not check(value):
            found = repr(value)
            shown = found if len(found) <= 40 else found[:39] + "…"
            yield f"{where}{key}={shown}; {_WHAT[check]} is needed"


def _curve(curve: dict[str, Any], where: str) -> Iterator[str]:
    yield from _of(curve, f"{where}.", _CURVE)
    axes = [curve.get(axis) or [] for axis in ("x", "y")]
    if len({len(axis) for axis in axes}) > 1 or not all(_number(value) for axis in axes for value in axis):
        yield f"{where} has no number for each x; as many finite numbers are needed in x and y"

"""Records of runs that never ran, for tests of tables and figures: what run.py writes, with numbers of one's choice."""

import json
from pathlib import Path

PROTOCOL = "emoji_dit|emoji|ddim20|cfg=2.0|N=256|seed={seed}|bs=32|float32"


def metric(value, stderr=None, higher=True, delta=None, delta_stderr=None, n=256):
    return {
        **{"value": value, "stderr": stderr, "n": n, "higher_is_better": higher},
        **{"delta": delta, "delta_stderr": delta_stderr},
    }


def fid(value, stderr=1.0, full=60.0, delta_stderr=0.2, n=256):
    return metric(value, stderr, higher=False, delta=value - full, delta_stderr=delta_stderr, n=n)


def record(quantizer, bits, metrics, *, seed=0, study="s", protocol=PROTOCOL, config=None, **changes):
    full = quantizer == "fp"
    text = protocol.format(seed=seed)
    weight_bits = float(bits.split("a")[0][1:])
    cost = {
        **{"weight_bits_model": weight_bits + 0.5, "weight_bits_quantized": weight_bits},
        **{"model_bytes": int(weight_bits * 1e6), "bops": 2e12, "seconds": {"quantize": 1.0, "sample": 30.0}},
        **{"samples_per_second": 8.0, "peak_memory_bytes": None},
        "executed": "full precision" if full else "simulated",
    }
    recipe = {"quantizer.name": quantizer, "bits.name": bits, "seed": seed, "sampler.steps": 20, "dataset.name": "none"}
    return {
        **{
            "schema": 1,
            "status": "done",
            "error": None,
            "study": study,
            "name": "fp" if full else f"{quantizer}-{bits}",
        },
        **{"run_id": f"{abs(hash((quantizer, bits, seed, text, str(config)))):08x}"[:8], "seed": seed},
        **{"config": recipe | (config or {}), "protocol": text, "protocol_id": f"id{abs(hash(text)) % 10**6}"},
        **{"metrics": metrics, "curves": {}, "layers": [], "cost": cost, "versions": {}, "git": None},
        **{"started": "2026-11-21T10:00:00", "finished": "2026-11-21T10:05:00"},
    } | changes


def failed(quantizer, bits, error, **changes):
    """What run.py writes for a failed cell: no protocol, no numbers."""
    whole = record(quantizer, bits, {}, **{"status": "failed", "error": error, "error_kind": "user"} | changes)
    return whole | {"protocol": None, "protocol_id": None, "cost": {}}


def write(runs_dir: Path, *records) -> Path:
    for each in records:
        folder = runs_dir / each["study"] / f"{each['name']}-{each['run_id']}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(each))
    return runs_dir


def cells(table) -> list[list[tuple[str, str]]]:
    return [[(cell.text, cell.mark) for cell in row] for row in table.rows]


def column(table, name) -> dict[tuple[str, ...], str]:
    at = next(i for i, header in enumerate(table.header) if header.startswith(name))
    return {tuple(c.text for c in row[: table.n_keys]): row[at].text for row in table.rows}

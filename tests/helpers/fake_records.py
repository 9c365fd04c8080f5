"""Records of runs that never ran, for tests of tables and figures: what run.py writes, with numbers of one's choice."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from qdit.storage.run_folder import IMAGES, VALUES

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


METHODS = {
    **dict.fromkeys(("rtn", "smoothquant", "quarot", "awq", "q_diffusion", "ptq4dm", "ptqd", "ptq4vit"), "baseline"),
    **dict.fromkeys(("repq_vit", "mixdq"), "baseline"),
    **dict.fromkeys(("svdquant", "ptq4dit", "q_dit", "vidit_q", "viditq_v1", "tq_dit"), "dit"),
    **dict.fromkeys(("qdit_w4a8", "qdit_w4a4"), "hybrid"),
}
SEEDED = ("ptq4dit", "q_dit", "vidit_q", "tq_dit")
BITS = {"w8a8": 38.0, "w6a6": 26.0, "w4a8": 16.0, "w4a4": 7.0}
SETTINGS = {"settings": "5e771465"}


def comparison(runs_dir: Path, methods=tuple(METHODS), n=64) -> Path:
    """A study of methods at four bit-widths: values of single samples, curves, images, calibration seeds for some.

    Harder samples are harder for all methods, so that only their differences tell neighbours apart.
    """
    random = np.random.default_rng(0)
    hardness, pictures = random.normal(0, 3, n), random.integers(0, 256, (16, 3, 32, 32), dtype=np.uint8)
    full = record(
        "fp", "w16a16", {"fid_lite0": metric(60.0, 1.0, higher=False, n=n), "is_lite0": metric(9.0, 0.2, n=n)}
    )
    _keep(runs_dir, full, {}, pictures)
    for number, name in enumerate(methods):
        for bits, level in BITS.items():
            for seed in range(3 if name in SEEDED else 1):
                each = level + 0.4 * number + 0.3 * seed + hardness + random.normal(0, 0.4, n)
                _keep(runs_dir, *_fake(name, bits, seed, each, level), pictures)
    return runs_dir


def _fake(name, bits, seed, each, level):
    mean, error = float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5)
    distance = 60 + 800 * 10 ** (-mean / 20)
    metrics = {
        "sqnr": metric(mean, error, n=len(each)) | SETTINGS,
        "ssim": metric(1 - 10 ** (-mean / 20), 0.004, n=len(each)),
        "fid_lite0": fid(distance, n=len(each)),
        "is_lite0": metric(9.0 - 30 / mean, 0.2, delta=-30 / mean, delta_stderr=0.05, n=len(each)),
    }
    if name == "quarot" and bits == "w4a4":
        metrics.pop("fid_lite0")
    config = {"quantizer.family": METHODS.get(name), "calibration.seed": seed}
    steps = np.arange(999, -1, -50)
    curve = {"x": steps.tolist(), "y": (mean + 8 * steps / 1000).tolist(), "stderr": [0.3] * len(steps)}
    curve |= {"xlabel": "timestep", "ylabel": "teacher-forced SQNR (dB)"}
    made = record(name, bits, metrics, config=config, curves={"sqnr_per_timestep": curve})
    made["cost"]["weight_bits_model"] = level / 5 + 0.3 * len(name) / 10
    made["cost"]["bops"] = level * 1e11
    made["cost"]["model_bytes"] = int((1 + level / 5 + 0.1 * len(name)) * 1e6)
    return made, {"sqnr@" + SETTINGS["settings"]: each}


def _keep(runs_dir, made, values, images) -> None:
    """Write a record with what a run keeps of its samples."""
    folder = runs_dir / made["study"] / f"{made['name']}-{made['run_id']}"
    if not folder.exists():
        write(runs_dir, made)
    (folder / "samples").mkdir()
    if values:
        (folder / VALUES).write_bytes(save(values))
    captions = json.dumps([f"class {number}" for number in range(len(images))])
    (folder / IMAGES).write_bytes(save({"images": images}, {"captions": captions}))

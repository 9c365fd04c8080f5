"""A stand-in for VBench's file of prompts, with the same counts: two prompts are in two entries."""

import json
from pathlib import Path

from qdit.dataset.vbench import COUNTS, DISTINCT, ENTRIES

SHARED = {"subject_consistency": ("motion_smoothness", "dynamic_degree"), "scene": ("background_consistency",)}
SHARED |= {"overall_consistency": ("aesthetic_quality", "imaging_quality")}


def write_suite(folder: Path) -> Path:
    """Write it, and return where."""
    entries = []
    for name, count in COUNTS.items():
        if name not in {other for others in SHARED.values() for other in others}:
            dimensions = [name, *SHARED.get(name, ())]
            entries += [{"prompt_en": f"{name} {number}", "dimension": dimensions} for number in range(count)]
    entries[-1]["prompt_en"], entries[-2]["prompt_en"] = entries[0]["prompt_en"], entries[1]["prompt_en"]
    file = folder / "VBench_full_info.json"
    file.write_text(json.dumps(entries))
    assert (len(entries), len({entry["prompt_en"] for entry in entries})) == (ENTRIES, DISTINCT)
    return file

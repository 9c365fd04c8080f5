"""VBench's prompts as a data set, read from the user's copy of `VBench_full_info.json` (Vchitect/VBench, Apache-2.0).

The suite does not come with qdit. A copy is recognised by what it holds: 946 entries of 944 prompts, so many of each
dimension. Sample i has prompt i mod n and its own noise, so that five times as many samples as prompts are VBench's
five videos a prompt, with our seeds. A prompt knows its dimensions (`SuitePrompt`), so that VBench's code judges the
videos of each as it would by itself.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdit.dataset.prompts import Caption, Prompts
from qdit.errors import UserError
from qdit.eval.vbench.suite import SuitePrompt
from qdit.storage.reading import read_bytes

ENTRIES, DISTINCT = 946, 944
COUNTS = {
    **dict.fromkeys(("subject_consistency", "motion_smoothness", "dynamic_degree"), 72),
    **dict.fromkeys(("background_consistency", "scene"), 86),
    **dict.fromkeys(("overall_consistency", "aesthetic_quality", "imaging_quality"), 93),
    **{"temporal_flickering": 75, "object_class": 79, "multiple_objects": 82, "color": 85},
    **{"spatial_relationship": 84, "human_action": 100, "appearance_style": 90, "temporal_style": 100},
}
"""Prompts of each dimension."""
_GET = "get VBench_full_info.json from github.com/Vchitect/VBench"


@dataclass(kw_only=True)
class VBenchPrompts(Prompts):
    """The prompts of some dimensions, each once, in the order of the suite. See `Prompts` for the other arguments.

    Args:
        file: a copy of `VBench_full_info.json`.
        dimensions: whose prompts; empty for all.

    Raises:
        UserError: the file is missing, or is not the suite; or a dimension is unknown.
    """

    suite = "vbench"
    dimensions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read the suite."""
        if unknown := [name for name in self.dimensions if name not in COUNTS]:
            raise UserError(f"dataset.dimensions: {', '.join(unknown)} is none of {', '.join(COUNTS)}")
        known: dict[str, list[str]] = {}
        for entry in read_suite(Path(self.file).expanduser()):
            known.setdefault(entry["prompt_en"], []).extend(entry["dimension"])
        chosen = {text: of for text, of in known.items() if not self.dimensions or {*of} & {*self.dimensions}}
        self.captions = [Caption(text, SuitePrompt(text, dict.fromkeys(of))) for text, of in chosen.items()]
        self.calibration = self._load("calibration_file")


def read_suite(file: Path) -> list[dict[str, Any]]:
    """The entries of the suite: `prompt_en` and `dimension`, and some with `auxiliary_info`.

    Raises:
        UserError: the file is missing, or is not the suite.
    """
    data = read_bytes(file, _GET)
    try:
        entries = json.loads(data)
        prompts = [entry["prompt_en"] for entry in entries]
        counts = Counter(name for entry in entries for name in {*entry["dimension"]})
        texts = {str(prompt) for prompt in prompts if isinstance(prompt, str)}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{file} is no list of VBench's entries ({error!r}); {_GET}") from error
    found = (len(prompts), len(texts), dict(counts))
    if found != (ENTRIES, DISTINCT, COUNTS):
        other = [f"{name} {counts.get(name, 0)} for {count}" for name, count in COUNTS.items() if counts[name] != count]
        raise UserError(
            f"{file} has {len(prompts)} entries of {len(texts)} prompts, VBench has {ENTRIES} of {DISTINCT}"
            + (f" ({', '.join(other[:4])})" if other else "")
            + f"; {_GET}"
        )
    return entries

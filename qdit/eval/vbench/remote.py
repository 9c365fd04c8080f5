"""Carry out one dimension of VBench, in the user's other environment, where VBench is; imports nothing of qdit.

    python remote.py versions                       print, in a line of JSON, what results depend on beside the videos
    python remote.py MANIFEST DIMENSION OUTPUT

MANIFEST is what `qdit.eval.vbench.exchange` writes above the folder of the videos; OUTPUT becomes JSON of the value of
each video that the dimension judges, by the file's name. Python 3.10 is enough.
"""

import hashlib
import json
import sys
import tempfile
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

CUSTOM = (
    *("subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree", "aesthetic_quality"),
    *("imaging_quality", "temporal_flickering", "human_action", "temporal_style", "overall_consistency"),
)
"""Dimensions that take any prompt; the others read what VBench's own file says of its prompts."""


def versions() -> "dict[str, str]":
    """Of VBench and torch in this environment, and the kind of device."""
    torch, vbench = map(import_module, ("torch", "vbench"))  # of that environment, not of qdit's
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"vbench": _version(vbench), "torch": torch.__version__, "device": device}


def _version(vbench: Any) -> str:
    """What VBench says of itself, or its installation, or a digest of its source."""
    if hasattr(vbench, "__version__"):
        return str(vbench.__version__)
    try:
        return metadata.version("vbench")
    except metadata.PackageNotFoundError:
        files = sorted(Path(str(vbench.__file__)).parent.glob("*.py"))
        return "source " + hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def main(manifest: str, dimension: str, output: str) -> None:
    """Run VBench's code on the videos of a manifest."""
    made = versions()
    vbench: Any = import_module("vbench")
    given = json.loads(Path(manifest).read_text())
    folder = Path(manifest).resolve().parent / "videos"
    info = Path(str(vbench.__file__)).parent / "VBench_full_info.json"
    about: dict[str, Any] = {"mode": "vbench_standard"}
    if given["dimensions"] is None:  # VBench puts its folder before the names
        about = {"mode": "custom_input", "prompt_list": {video["file"]: video["prompt"] for video in given["videos"]}}
    with tempfile.TemporaryDirectory() as scratch:
        judge = vbench.VBench(made["device"], str(info), scratch)
        judge.evaluate(videos_path=str(folder), name="run", dimension_list=[dimension], **about)
        found = json.loads((Path(scratch) / "run_eval_results.json").read_text())[dimension][1]
    values = {Path(each["video_path"]).name: each["video_results"] for each in found}
    report = {"manifest": given["digest"], "dimension": dimension, "versions": made, "values": values}
    Path(output).write_text(json.dumps(report))


if __name__ == "__main__":
    here = Path(__file__).resolve().parent  # whose files are no modules for others
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != here]
    if sys.argv[1:] == ["versions"]:
        print(json.dumps(versions()))
    else:
        main(*sys.argv[1:4])

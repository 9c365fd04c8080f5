"""Carry out one dimension of VBench, in the user's other environment, where VBench is; imports nothing of qdit.

    python remote.py MANIFEST DIMENSION OUTPUT

MANIFEST is what `qdit.eval.vbench.exchange` writes beside the videos; OUTPUT becomes JSON of each video's value.
"""

import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path

CUSTOM = (
    *("subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree", "aesthetic_quality"),
    *("imaging_quality", "temporal_flickering", "human_action", "temporal_style", "overall_consistency"),
)
"""Dimensions that take any prompt; the others read what VBench's own file says of its prompts."""


def main(manifest: str, dimension: str, output: str) -> None:
    """Run VBench's code on the videos of a manifest."""
    torch, vbench = map(import_module, ("torch", "vbench"))  # of that environment, not of qdit's
    given = json.loads(Path(manifest).read_text())
    folder = Path(manifest).parent
    prompts = {str(folder / video["file"]): video["prompt"] for video in given["videos"]}
    info = Path(str(vbench.__file__)).parent / "VBench_full_info.json"
    with tempfile.TemporaryDirectory() as scratch:
        judge = vbench.VBench("cuda" if torch.cuda.is_available() else "cpu", str(info), scratch)
        about = {"prompt_list": prompts, "mode": "custom_input"} if dimension in CUSTOM else {"mode": "vbench_standard"}
        judge.evaluate(videos_path=str(folder), name="run", dimension_list=[dimension], **about)
        found = json.loads((Path(scratch) / "run_eval_results.json").read_text())[dimension][1]
    values = {Path(each["video_path"]).name: each["video_results"] for each in found}
    report = {
        "manifest": given["digest"],
        "dimension": dimension,
        "versions": {"vbench": getattr(vbench, "__version__", "unknown"), "torch": torch.__version__},
        "values": values,
    }
    Path(output).write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:4])

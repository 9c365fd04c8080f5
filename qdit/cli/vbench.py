"""qdit-vbench: videos of a run for VBench's own code elsewhere, its results back into the record, and totals.

    qdit-vbench export runs/default/q_dit-w4a8-0123abcd out/        mp4 files with VBench's names in out/videos/
    qdit-vbench import runs/default/q_dit-w4a8-0123abcd out/ results_eval_results.json
    qdit-vbench total runs/default/q_dit-w4a8-0123abcd              of all sixteen dimensions, or not at all

out/manifest.json says what was written, and which videos each dimension judges; VBench is given out/videos/ alone.
Runs with `eval=vbench_viditq8` and its kin do the first two by themselves, where $QDIT_VBENCH_PYTHON is set.
VBench's static filter, which its temporal flickering is meant to be behind, is not run: neither by these videos, nor in
the total.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdit.cli.entry import carried_out
from qdit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from qdit.eval.samples import SampleSet
    from qdit.storage.shelf import Shelf


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 2 after a mistake that the user can mend."""
    args = _parser().parse_args(arguments)
    return carried_out("qdit-vbench", lambda: args.run(args))


def _parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser("qdit-vbench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = whole.add_subparsers(required=True, metavar="export|import|total")
    export = commands.add_parser("export", help="write the videos of a run, and their manifest")
    export.add_argument("folder", type=Path, metavar="RUN", help="folder of a finished run")
    export.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    export.set_defaults(run=_export)
    back = commands.add_parser("import", help="put VBench's results of such videos into the run's record")
    back.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    back.add_argument("out", type=Path, metavar="OUT", help="folder with the manifest")
    back.add_argument("results", type=Path, nargs="+", metavar="RESULTS", help="..._eval_results.json of VBench")
    back.add_argument("--versions", default="", help="of VBench and torch there, for the protocol")
    back.set_defaults(run=_import)
    total = commands.add_parser("total", help="quality, semantic and total of a record")
    total.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    total.set_defaults(run=_total)
    return whole


def _export(args: argparse.Namespace) -> None:
    from qdit.eval.vbench.exchange import export, read_manifest
    from qdit.eval.vbench.totals import FLICKERING, UNFILTERED

    samples, run_id = _samples(args.folder)
    place = export(samples.pieces(), samples.prompts, args.out, run_id, samples.frames_per_second)
    print(place)
    judging = read_manifest(place)["dimensions"]
    if judging is None or FLICKERING in judging:
        print(UNFILTERED, file=sys.stderr)


def _samples(folder: Path) -> "tuple[SampleSet, str]":
    """The samples of a finished run, with the model that decodes them, and the run's id.

    Raises:
        UserError: there is no such run, it makes no videos, or its samples are not here.
    """
    from qdit.runs import sampling
    from qdit.runs.identity import is_full_precision
    from qdit.runs.measure import shelf_of
    from qdit.runs.setup import assemble
    from qdit.storage.reading import read_yaml
    from qdit.tracking import NoTracker

    record = _record(folder)
    config = read_yaml(folder / "config.yaml", "give the folder of a run") | {"eval": {}, "dry": False}
    config |= {"runs_dir": str(folder.resolve().parents[1])}
    parts = assemble(config)
    if parts.model.modality != "video":
        raise UserError(f"{folder} made {parts.model.modality}s; VBench judges videos")
    place = shelf_of(config, parts)
    shelf = place if is_full_precision(config) else place / "samples"
    samples = sampling.sample_set(config, parts, shelf, None, NoTracker())
    if not samples.adopt(record.get("made")):
        raise UserError(f"the samples of {folder} are not whole here; carry out its command again")
    return samples, record["run_id"]


def _record(folder: Path) -> dict[str, Any]:
    from qdit.storage.run_folder import RunDir

    if (record := RunDir(folder).result()) is None or record["status"] != "done":
        raise UserError(f"{folder} is no folder of a finished run; it has no result.json")
    return record


def _import(args: argparse.Namespace) -> None:
    from qdit.eval.vbench.exchange import MANIFEST, protocol, read_manifest
    from qdit.eval.vbench.results import read_released
    from qdit.eval.vbench.totals import DIMENSIONS, FLICKERING, UNFILTERED
    from qdit.storage.reading import read_json
    from qdit.storage.run_folder import RunDir

    record, manifest = _record(args.folder), read_manifest(args.out / MANIFEST)
    if manifest["of"] != record["run_id"]:
        raise UserError(f"{args.out} holds videos of run {manifest['of'] or 'unknown'}, not of {record['run_id']}")
    found = {
        dimension: read_released(file, manifest, dimension)
        for file in args.results
        for dimension in read_json(file, "give the file that VBench wrote")
        if dimension in DIMENSIONS
    }
    if not found:
        raise UserError(f"{', '.join(map(str, args.results))} hold none of VBench's dimensions")
    about = protocol(manifest, {"versions": args.versions} if args.versions else {})
    prompts = [video["prompt"] for video in manifest["videos"]]
    with RunDir(args.folder).lock():
        record = _record(args.folder)  # as it is now that nobody else writes
        shelf = _shelf(args.folder, record)
        for dimension, values in found.items():
            record["metrics"][dimension] = _kept(dimension, values, prompts, about, shelf)
        RunDir(args.folder).save_result({key: value for key, value in record.items() if key != "digest"})
    if FLICKERING in found:
        print(UNFILTERED, file=sys.stderr)


def _shelf(folder: Path, record: dict[str, Any]) -> "Shelf":
    """Where the values of a run's single samples are, among which new ones are kept.

    Raises:
        UserError: the run's config does not give its id here, so that what it keeps would be taken for another's.
    """
    from qdit.runs.identity import identity
    from qdit.storage.digest import digest
    from qdit.storage.reading import read_yaml
    from qdit.storage.shelf import Shelf

    about = identity(read_yaml(folder / "config.yaml", "give the folder of a run"))
    if digest(about) != record["run_id"]:
        raise UserError(
            f"{folder} is run {record['run_id']}, and its config describes {digest(about)} here: its model or data are "
            "not where they were, or changed; give the command where the run was made"
        )
    return Shelf(folder, about, record.get("made")) / "samples"


def _kept(dimension: str, values: "Tensor", prompts: Sequence[str], about: str, shelf: "Shelf") -> dict[str, Any]:
    """A dimension's entry of a record; the values of single samples [n] are kept beside those of other metrics."""
    from dataclasses import asdict

    from qdit.eval.base import Result
    from qdit.eval.per_sample import mean_of_judged
    from qdit.eval.vbench.external import External
    from qdit.runs.evaluation import keep
    from qdit.storage.digest import digest

    if (found := mean_of_judged(values, prompts)) is None:
        raise UserError(f"VBench's {dimension} found what it looks for in no video")
    mean, n = found
    better = External.higher_is_better
    result = Result(
        value=mean.value, stderr=mean.stderr, n=n, higher_is_better=better, clusters=mean.clusters, protocol=about
    )
    settings = digest({"dimension": dimension, "protocol": about})
    keep(shelf, f"{dimension}@{settings}", values, prompts)
    print(f"{dimension}: {mean.value:.4f}" + (f" ± {mean.stderr:.4f}" if mean.stderr is not None else ""))
    shown = {"shown": asdict(External.shown)} if External.shown else {}
    return result.record() | {"settings": settings} | shown


def _total(args: argparse.Namespace) -> None:
    from qdit.eval.vbench.totals import DIMENSIONS, UNFILTERED, Value, totals

    metrics = _record(args.folder)["metrics"]
    values = {
        name: Value(metric["value"], metric.get("stderr"), metric.get("protocol") or "frames in memory")
        for name, metric in metrics.items()
        if name in DIMENSIONS
    }
    for name, total in totals(values).items():
        print(f"{name}: {total.value:.4f}" + (f" ± {total.stderr:.4f}" if total.stderr is not None else ""))
    print(UNFILTERED, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

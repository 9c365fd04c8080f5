"""qdit-score: judge a folder of images or clips that anything made, with qdit's metrics and error bars.

    qdit-score made/ --against full/          pairs by file name: PSNR, SSIM ..., and distances
    qdit-score made/ --against photos/        other names: distances of the two sets
    qdit-score made/                          what needs no comparison
    qdit-score clips/ --frames --against full_clips/ --prompts prompts.jsonl

Clips are videos (with PyAV, of qdit[video]), GIFs, or with --frames subfolders of frames; they are compared as pairs
alone. A file of prompts has a caption a line, in the order of the names, or is JSONL or CSV with `prompt` and `id` (the
name, or the name before -0, -1 ...); errors are then over prompts. Metrics are the options of qdit's `eval`; what
cannot be computed is named.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdit.cli.entry import carried_out, device_of
from qdit.errors import Advised, UserError, from_problems

if TYPE_CHECKING:
    from qdit.eval.base import Metric, Result
    from qdit.eval.folders import Folder
    from qdit.eval.reference import Reference

PAIRED = ("psnr", "ssim", "feature_distance_lite0", "fid_to_full_lite0", "kid_to_full_lite0")
APART = ("fid_lite0", "kid_lite0", "precision_lite0", "recall_lite0")
ALONE = ("is_lite0",)
OF_CLIPS = ("temporal_flickering", "motion_energy", "motion_smoothness_blend", "subject_consistency_lite0")
OF_CLIP_PAIRS = ("psnr_worst_frame", "temporal_difference_error")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 2 after a mistake that the user can mend."""
    args = _parser().parse_args(arguments)
    return carried_out("qdit-score", lambda: _advised(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("qdit-score", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="images or clips to judge")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="what they are compared with")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="captions: .txt, .jsonl or .csv")
    parser.add_argument("--frames", action="store_true", help="each subfolder is a clip, of which it holds the frames")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="options of `eval`; default: what applies")
    parser.add_argument("--device", default="cpu", help="of extractors; default: cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    return parser


def _advised(args: argparse.Namespace) -> None:
    """Judge a folder; what to try, where metrics have found a problem, is what can be done for a folder."""
    try:
        _score(args)
    except UserError as error:
        raise UserError(*map(_of_folder, error.problems)) from error


def _of_folder(problem: str) -> str:
    return problem.of_folder if isinstance(problem, Advised) else problem


def _score(args: argparse.Namespace) -> None:
    from qdit.eval.frames import survey

    device = device_of(args.device)
    extractors: dict[str, Any] = {}
    own, other, pairs = _folders(args, extractors)
    metrics = _metrics(args.metrics or _default(own.clips, other is not None, pairs))
    left = _left_out(metrics, own, other, pairs)
    if left and (args.metrics or left.keys() == metrics.keys()):
        raise from_problems([f"{name}: {why}" for name, why in left.items()], "this score")
    metrics = {name: metric for name, metric in metrics.items() if name not in left}
    for metric in metrics.values():
        if metric.extractor and (network := metric.network()) is not None:
            extractors[metric.extractor] = network.loaded(device)
    # Samples of other names are no pairs: they are a data set, and a metric has no difference to them.
    full = other if pairs and other is not None else own
    survey(metrics.values(), own, full)
    references: dict[str, Reference] = {}
    found: dict[str, Result] = {}
    for name, metric in metrics.items():
        if metric.needs_reference and other is not None and metric.extractor not in references:
            references[metric.extractor or ""] = _reference(other, metric.extractor or "")
        found[name] = metric.compute(own, full, references.get(metric.extractor or ""))
    print(_table(found, metrics, own, other, pairs))
    for name, why in left.items():
        print(f"{name} was not computed: {why}", file=sys.stderr)
    if args.json:
        from qdit.storage.atomic import write_json

        write_json(args.json, _report(found, left, own, other))


def _folders(args: argparse.Namespace, extractors: dict[str, Any]) -> "tuple[Folder, Folder | None, bool]":
    """The samples, what they are compared with, and whether the two are pairs, which have the same prompts.

    Raises:
        UserError: a folder or the prompts cannot be used, or clips are no pairs.
    """
    from qdit.cli.captions import captions_of
    from qdit.eval.folders import Folder, paired

    own = Folder.find(args.folder, extractors.__getitem__, args.frames)
    other = Folder.find(args.against, extractors.__getitem__, args.frames) if args.against else None
    pairs = other is not None and paired(own, other)
    if other is not None and own.clips and not pairs:
        raise UserError(
            f"no clip of {own.path} has the name of one of {other.path} (the first are {own.names[0]} and "
            f"{other.names[0]}), and clips are compared as pairs alone; give the same names, or leave out --against"
        )
    if args.prompts:
        prompts = captions_of(args.prompts, own.names)
        for each in (own, other) if pairs and other is not None else (own,):
            each.prompts = each.clusters = prompts
    return own, other, pairs


def _default(clips: bool, against: bool, pairs: bool) -> tuple[str, ...]:
    """The metrics that fit what is there."""
    if clips:
        return (*(("psnr", "ssim", *OF_CLIP_PAIRS, "fid_to_full_lite0") if pairs else ()), *OF_CLIPS)
    return PAIRED if pairs else APART if against else ALONE


def _metrics(names: Sequence[str]) -> "dict[str, Metric]":
    """Metrics by name, as the config group `eval` has them.

    Raises:
        UserError: an option is unknown.
    """
    from hydra import compose, initialize_config_dir

    from qdit.assets import CONF
    from qdit.config import build, resolved

    known = {path.stem for path in (CONF / "eval").glob("*.yaml")}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--metrics {' '.join(unknown)}: no such option; there are {', '.join(sorted(known))}")
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="qdit"):
        config = resolved(compose("config", [f"eval=[{','.join(names)}]"]))
    return {name: build(node) for name, node in config["eval"].items()}


def _left_out(metrics: "dict[str, Metric]", own: "Folder", other: "Folder | None", pairs: bool) -> dict[str, str]:
    """What cannot be computed, and why."""
    from qdit.eval.paired import SQNR, LatentMSE, WorstSQNR

    found = {}
    kind, sizes = "video" if own.clips else "image", [each.size() for each in (own, other) if each is not None]
    length = own.length(max(metric.fewest_frames for metric in metrics.values()))
    for name, metric in metrics.items():
        problems = [*metric.preflight(own.n, None, min(sizes[0])), *metric.unreadable(own.prompts)]
        problems += metric.short(length) if own.clips else []
        if metric.suite is not None:
            problems.append(
                f"it judges the prompts of {metric.suite} alone, which a run has with dataset={metric.suite}"
            )
        if isinstance(metric, SQNR | LatentMSE | WorstSQNR):
            problems.append("a folder has no latents")
        if kind not in metric.modalities:
            problems.append(f"it is for {' and '.join(metric.modalities)}s, and these are {kind}s")
        if metric.paired and not pairs:
            problems.append("it compares pairs; give --against, a folder with the same file names")
        if metric.needs_reference and other is None:
            problems.append("it compares with a set; give --against")
        if metric.needs_reference and other is not None and other.n < metric.fewest_references:
            held = f"{other.n} image{'s' * (other.n != 1)}"
            problems.append(f"{other.path} holds {held}, {metric.fewest_references} are the least to compare with")
        if metric.needs_reference and sizes[0] != sizes[-1]:
            shown = [f"{width}×{height}" for height, width in sizes]
            problems.append(
                f"these have {shown[0]} pixels and the set {shown[1]}: distances between sizes mean nothing"
            )
        if problems:
            found[name] = "; ".join(map(_of_folder, problems))
    return found


def _reference(folder: "Folder", extractor: str) -> "Reference":
    """Statistics of a folder's images."""
    from qdit.eval.reference import Reference
    from qdit.eval.statistics import Moments

    features = folder.features(extractor)
    pooled, spatial = features["pooled"], features.get("spatial")
    moments, of_spatial = Moments.of(pooled), Moments.of(spatial) if spatial is not None else None
    return Reference(
        name=folder.path.name,
        extractor=extractor,
        mu=moments.mean,
        sigma=moments.covariance(),
        mu_s=of_spatial.mean if of_spatial else None,
        sigma_s=of_spatial.covariance() if of_spatial else None,
        pooled=pooled,
        n=folder.n,
    )


def _table(
    found: "dict[str, Result]", metrics: "dict[str, Metric]", own: "Folder", other: "Folder | None", pairs: bool
) -> str:
    """A row a metric: value and standard error, and the difference to the other folder."""
    from dataclasses import asdict

    from tabulate import tabulate

    from qdit.eval.folders import said
    from qdit.tables.quantity import metric_quantity, show

    rows = []
    for name, result in found.items():
        shown = metrics[name].shown
        quantity = metric_quantity(name, result.higher_is_better, asdict(shown) if shown else None)
        delta = "" if result.delta is None else show(result.delta, result.delta_stderr, quantity)
        rows.append([quantity.label, show(result.value, result.stderr, quantity), delta])
    header = ["metric", own.path.name, f"Δ to {other.path.name}" if pairs and other else ""]
    columns = 3 if any(row[2] for row in rows) else 2
    align = ("left", "right", "right")[:columns]
    grid = tabulate([row[:columns] for row in rows], header[:columns], "pipe", disable_numparse=True, colalign=align)
    size = said(own.shape) if own.shape else "features alone"
    against = "" if other is None else f", {'paired with' if pairs else 'against the set'} {other.path}"
    clusters = next((result.clusters for result in found.values() if result.clusters), None)
    over = f" over {clusters} prompts" if clusters else ""
    bare = [name for name, result in found.items() if result.stderr is None]
    without = f" {', '.join(bare)}: without an error, for which there are too few samples or prompts." if bare else ""
    return f"{grid}\n\n± is one standard error{over}. {own.n} samples of {size}{against}.{without}"


def _report(found: "dict[str, Result]", left: dict[str, str], own: "Folder", other: "Folder | None") -> dict[str, Any]:
    """The results as JSON: records of metrics as in result.json, and each sample's values."""
    each = {
        name: dict(zip(own.names, result.each.tolist(), strict=True))
        for name, result in found.items()
        if result.each is not None
    }
    return {
        "folder": str(own.path),
        "against": str(other.path) if other else None,
        "metrics": {name: result.record() for name, result in found.items()},
        "each": each,
        "left_out": left,
    }


if __name__ == "__main__":
    sys.exit(main())

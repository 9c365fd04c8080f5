"""What becomes of a run's samples: metrics and their values for each sample, and pictures."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdit.eval.frames import survey
from qdit.eval.pieces import first_of
from qdit.eval.samples import SampleSet
from qdit.plots import clips
from qdit.plots import run as figures
from qdit.runs.setup import Setup
from qdit.storage.run_folder import CLUSTERS, IMAGES, VALUES
from qdit.storage.shelf import Shelf
from qdit.storage.tensors import save_tensors
from qdit.tables import quantity
from qdit.tracking import Tracker

log = logging.getLogger("qdit")
SHOWN = 16  # samples in samples.png


def evaluate(
    wanted: dict[str, str],
    known: dict[str, Any],
    parts: Setup,
    samples: SampleSet,
    reference: SampleSet,
    save: Callable[[dict[str, Any]], None],
    tracker: Tracker,
) -> dict[str, Any]:
    """Every wanted metric as a record; those in `known` with the same settings are kept.

    Args:
        wanted: name -> digest of the metric's settings.
        known: metrics of an earlier record of the same run.
        parts: for the metrics and their references.
        samples, reference: the run's samples and those of full precision on the same noise.
        save: keeps what was found so far, after each metric.
        tracker: gets each metric as it is found.
    """
    found = dict(known)
    new = {name: s for name, s in wanted.items() if name not in known or known[name]["settings"] != s}
    survey([parts.metrics[name] for name in new], samples, reference)
    for name, settings in new.items():
        metric = parts.metrics[name]
        result = metric.compute(samples, reference, parts.prepared.reference_of(metric))
        shown = {"shown": asdict(metric.shown)} if metric.shown else {}
        found[name] = result.record() | {"settings": settings} | shown
        if result.each is not None and samples is not reference:
            keep_values(samples, f"{name}@{settings}", result.each)
        save(found)
        tracker.log({name: result.value}, len(found), "evaluation")
        error = "" if result.stderr is None else f" ± {result.stderr:.3g}"
        log.info("  %-16s %.4g%s", name, result.value, error)
    return found


def keep_values(samples: SampleSet, key: str, values: Tensor) -> None:
    """Save a metric's value for each sample, [n], with a run; tables compare methods sample by sample."""
    keep(samples.shelf, key, values, samples.clusters)


def keep(shelf: Shelf, key: str, values: Tensor, prompts: Sequence[str] | None) -> None:
    """Save values [n] among those of a run's samples; where they have prompts, also the number of each one's.

    Runs of other seeds have the same prompts, so that the numbers tell which samples are alike even if none is here.
    """
    name, kept = Path(VALUES).stem, {key: values.double()}
    if prompts is not None:
        order = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        kept[CLUSTERS] = torch.tensor([order[each] for each in prompts])
    shelf.save(name, (shelf.load(name) or {}) | kept)


def frames_picture(metrics: Mapping[str, Mapping[str, Any]], path: Path, title: str) -> None:
    """`frames.png`: paired metrics of clips over their frames, where there are any."""
    curves = {}
    for name, metric in metrics.items():
        if metric.get("by_frame"):
            whole = name.removesuffix("_worst_frame")  # whose curve is that of the mean
            shown = quantity.metric_quantity(whole, None, metric.get("shown") if whole == name else None)
            curves[shown.label] = metric["by_frame"]
    if curves:
        figures.frame_chart(curves, path, title)


def picture(config: dict[str, Any], parts: Setup, samples: SampleSet, reference: SampleSet, path: Path) -> None:
    """`samples.png`: full precision above the run's samples on the same noise, with the classes' names or prompts.

    Of clips it shows the frames in a row, and a video plays them (`qdit.plots.clips`).
    The run's images in it are kept beside it, with their captions, for pictures of several runs.
    """

    def shown(some: SampleSet) -> Tensor:
        frames = first_of(some.pieces(), SHOWN)
        return frames if parts.model.modality == "video" else frames[:, 0]

    first = own = shown(reference)
    rows = [("full precision", first)]
    if samples is not reference:
        own = shown(samples)
        rows.append((config["name"], own))
    names = parts.dataset.class_names()
    labels = parts.dataset.labels(list(range(len(first))), config["seed"])
    captions = [names[int(label)] for label in labels]
    figures.sample_grid(rows, path, captions)
    if own.ndim == 5:
        clips.play([(label, images.cpu().numpy()) for label, images in rows], path.parent, captions)
    save_tensors(path.parent / IMAGES, {"images": own}, {"captions": json.dumps(captions)})

"""The samples of a run as a table of Weights & Biases: prompts, images, what metrics say of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdit.errors import UserError
from qdit.storage.run_folder import IMAGES, VALUES

if TYPE_CHECKING:
    import wandb


def samples_table(run_dir: Path, metrics: Mapping[str, Mapping[str, Any]]) -> "wandb.Table | None":
    """A row for each sample whose image is kept: number, prompt (or class), image, and its value of each metric.

    The frames of a clip stand side by side. None where a run kept no images, or they cannot be read.

    Args:
        run_dir: the run's folder.
        metrics: of its record, for the names of values that it keeps.
    """
    import wandb

    from qdit.storage.tensors import load_tensors, load_with_about  # torch, which a run has loaded long since

    try:
        kept, about = load_with_about(run_dir / IMAGES)
        values = load_tensors(run_dir / VALUES) if (run_dir / VALUES).is_file() else {}
        images, captions = kept["images"], json.loads(about["captions"])
    except (OSError, KeyError, ValueError, UserError):
        return None
    if images.ndim == 5:  # [n, T, 3, H, W]
        images = images.movedim(1, 3).flatten(3)
    known = {
        name: values[key] for name, metric in metrics.items() if (key := f"{name}@{metric.get('settings')}") in values
    }
    rows: list[Any] = [
        [
            number,
            caption,
            wandb.Image(image.permute(1, 2, 0).numpy()),
            *(float(each[number]) for each in known.values()),
        ]
        for number, (caption, image) in enumerate(zip(captions, images, strict=True))
    ]
    return wandb.Table(columns=["sample", "prompt", "image", *known], data=rows)

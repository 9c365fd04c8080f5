"""Images with captions in the layouts of COCO and MJHQ-30K, of which references and prompts are made together.

COCO's captions are a JSON of `images` (`id`, `file_name`) and `annotations` (`image_id`, `id`, `caption`), several for
an image: the one of the least id is taken, whatever their order. MJHQ-30K has a `meta_data.json` of `prompt` and
`category` by the image's name, and a folder for each category. A distance between a model's images and these is only
fair if the prompts are those of the images: so both come from one choice.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qdit.errors import UserError
from qdit.eval.image_files import SUFFIXES, Images
from qdit.storage.atomic import atomic_write
from qdit.storage.reading import read_json

_AGAIN = "give the captions_*.json of COCO, or the meta_data.json of MJHQ-30K"


@dataclass(frozen=True)
class Captioned:
    """An image, by its name without folder and ending, and its caption."""

    name: str
    file: Path
    caption: str


def read_captioned(folder: Path, captions: Path) -> list[Captioned]:
    """The images of a folder that have captions, in the order of their names.

    Args:
        folder: of the images, at any depth.
        captions: COCO's or MJHQ's JSON.

    Raises:
        UserError: the file is neither, an image that it names is not there, or two have one name.
    """
    about = read_json(captions, _AGAIN)
    named = _coco(about, captions) if "annotations" in about else _mjhq(about, captions)
    there: dict[str, Path] = {}
    for file in Images(folder).items:
        assert isinstance(file, Path)
        if other := there.get(file.stem):
            raise UserError(f"{folder} has two images of one name, {other} and {file}; captions are by name")
        there[file.stem] = file
    if lost := sorted(named.keys() - there.keys()):
        raise UserError(
            f"{captions} has captions for {len(named)} images, and {len(lost)} of them are not in {folder}, such as "
            f"{lost[0]}; give the folder that belongs to this file"
        )
    return [Captioned(name, there[name], named[name]) for name in sorted(named)]


def _coco(about: Mapping[str, Any], file: Path) -> dict[str, str]:
    """Captions by the stem of the image's file."""
    try:
        names = {image["id"]: Path(image["file_name"]).stem for image in about["images"]}
        ordered = sorted(about["annotations"], key=lambda each: each["id"], reverse=True)
        found = {names[each["image_id"]]: each["caption"] for each in ordered}  # the least id is put last, and stays
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is not COCO's: images have id and file_name, annotations image_id, id and caption ({error!r})"
        ) from error
    return _texts(found, file)


def _mjhq(about: Mapping[str, Any], file: Path) -> dict[str, str]:
    """Captions by the image's name."""
    if not all(isinstance(each, dict) and "prompt" in each for each in about.values()):
        raise UserError(f"{file} is neither COCO's nor MJHQ's; {_AGAIN}")
    return _texts(
        {Path(name).stem if name.endswith(SUFFIXES) else name: v["prompt"] for name, v in about.items()}, file
    )


def _texts(found: Mapping[str, Any], file: Path) -> dict[str, str]:
    """Captions in one line each.

    Raises:
        UserError: there are none, or one is no text.
    """
    if not found:
        raise UserError(f"{file} has no captions; {_AGAIN}")
    if bad := [name for name, text in found.items() if not isinstance(text, str) or not text.strip()]:
        raise UserError(f"{file} has no text as the caption of {bad[0]} ({len(bad)} such); mend it, or take it away")
    return {name: " ".join(text.split()) for name, text in found.items()}


def choose(images: list[Captioned], count: int | None, seed: int) -> list[Captioned]:
    """So many images, drawn without replacement, in the order that they had; None for all.

    Raises:
        UserError: there are fewer, or fewer than two are wanted.
    """
    if count is None:
        return images
    if not 2 <= count <= len(images):
        raise UserError(f"--n {count} of {len(images)} images with captions; give 2 to {len(images)}")
    drawn = np.random.default_rng(seed).permutation(len(images))[:count]
    return [images[number] for number in sorted(drawn)]


def write_prompts(images: list[Captioned], path: Path) -> None:
    """Write the captions as JSONL, as `dataset.file` reads it: a line an image, `id` its name."""
    lines = [json.dumps({"id": each.name, "prompt": each.caption}, ensure_ascii=False) for each in images]
    atomic_write(path, "\n".join(lines) + "\n")

"""The weight files of a pipeline's modules: which of them are read, and what their headers say. Imports no diffusers.

A module's weights are one safetensors file or several (shards) with an index, plain or of a variant such as fp16. Only
safetensors are read: a pickled `.bin` can run code when it is loaded.
"""

import re
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from qdit.errors import UserError
from qdit.storage.reading import read_json

MODULE = "diffusion_pytorch_model"
"""How diffusers calls the weights of its modules; transformers calls them `model`."""
ENCODER = "model"
_FLOATS = ("F16", "BF16", "F32", "F64")
_COUNTER = ".num_batches_tracked"  # of a batch norm, a whole number


def weight_files(folder: Path, stem: str = MODULE) -> tuple[str | None, list[Path]]:
    """Find the weights of a module: the variant (None is the plain one, else such as fp16), and its files.

    Args:
        folder: of the module.
        stem: how its library calls the files: stem[.VARIANT][-00001-of-00002][.VARIANT].safetensors.

    Raises:
        UserError: there are none, several variants and no plain one, or an index that names files elsewhere.
    """
    name = re.compile(rf"{stem}(?:\.(?P<before>[^.]+?))?(?:-\d+-of-\d+)?(?:\.(?P<after>[^.]+))?\.safetensors")
    variants: dict[str | None, list[Path]] = {}
    for file in sorted(folder.glob(f"{stem}*.safetensors")):
        if match := name.fullmatch(file.name):
            variants.setdefault(match["before"] or match["after"], []).append(file)
    if not variants:
        pickles = sorted(p.name for end in ("bin", "pt", "pth", "ckpt") for p in folder.glob(f"*.{end}"))
        found = f"only {', '.join(pickles)}, a pickle, which can run code when it is loaded" if pickles else "none"
        raise UserError(
            f"{folder} has no {stem}*.safetensors (found: {found}). Convert the weights with "
            "safetensors, or, on the hub, set the revision that holds a safetensors copy (often refs/pr/1)"
        )
    if None not in variants and len(variants) > 1:
        raise UserError(
            f"{folder} holds several variants ({', '.join(sorted(map(str, variants)))}) and no plain "
            f"{stem}.safetensors; keep the one that is meant"
        )
    variant = next(iter(variants)) if None not in variants else None
    files = variants[variant]
    return variant, files if len(files) == 1 else _shards(folder, stem, variant, files)


def _shards(folder: Path, stem: str, variant: str | None, files: list[Path]) -> list[Path]:
    """The files that the index of a divided module names; a single file that lies beside them comes first."""
    infix = "" if variant is None else f".{variant}"
    if (plain := folder / f"{stem}{infix}.safetensors") in files:
        return [plain]
    file, again = folder / f"{stem}.safetensors.index{infix}.json", "copy or download it again"
    if not file.is_file():
        raise UserError(f"{folder} holds {len(files)} shards, and {file.name}, which says what is in them, is missing")
    index = read_json(file, again).get("weight_map")
    known = {file.name: file for file in files}
    if not isinstance(index, dict) or not index:
        raise UserError(f"{file} is damaged: it has no weight_map. Copy or download it again")
    named = sorted({str(shard) for shard in index.values()})
    if missing := [shard for shard in named if shard not in known]:
        raise UserError(f"{file} names {missing[0]}, which is not beside it. Copy or download it again")
    return [known[shard] for shard in named]


def shapes(folder: Path, stem: str = MODULE) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a module, from the files' headers alone; opening them compares their length, too.

    Raises:
        UserError: there are none, or one is truncated or not safetensors, or does not hold floating-point numbers.
    """
    found: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder, stem)[1]:
        try:
            with safe_open(file, "pt") as stream:
                slices = {key: stream.get_slice(key) for key in stream.keys()}  # noqa: SIM118 - not a dict
                types = {key: piece.get_dtype() for key, piece in slices.items()}
                found |= {key: tuple(piece.get_shape()) for key, piece in slices.items()}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is truncated or damaged ({error}). Copy or download it again") from error
        whole = {key: kind for key, kind in types.items() if kind not in _FLOATS and not key.endswith(_COUNTER)}
        if foreign := [f"{key} ({kind})" for key, kind in whole.items()]:
            raise UserError(
                f"{file}: {len(foreign)} of {len(types)} tensors are not in floating point, such as {foreign[0]}. The "
                "model is quantized already; give the original"
            )
    return found


def count_parameters(folder: Path, stem: str = MODULE) -> int:
    """How many numbers a module's weights are.

    Raises:
        UserError: as `shapes`.
    """
    return sum(prod(shape) for shape in shapes(folder, stem).values())

"""The readable half of a checkpoint, `quantized.json`: finding it, checking it, and the run that it came from.

Its keys: `format`; `base`, the model that it belongs to; `policy`, every site's bits and grid; `model`, layers and all
else (`qdit.checkpoint.serialize`); `tensors`, size and digest of `quantized.safetensors`; `provenance`, the config, the
code and the versions of the run that saved it; `digest`, of all this. Imports no torch, so that a config with
`quantizer=load` can be checked at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdit.checkpoint.claims import contradictions
from qdit.errors import UserError
from qdit.keys import RECIPE_KEYS
from qdit.storage.atomic import write_json
from qdit.storage.digest import blake2b, digest, file_digest
from qdit.storage.reading import read_json, size_of

FORMAT = 1
FOLDER, MANIFEST, TENSORS = "checkpoint", "quantized.json", "quantized.safetensors"
_KEYS = {"format", "base", "policy", "model", "tensors", "provenance", "digest"}
_NEEDED = {"bits", "scope", "quantizer"}  # of the config of a run that saved a checkpoint
_AGAIN = "save the checkpoint again, or copy it again"


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's folder and the content of its `quantized.json`."""

    folder: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "Manifest":
        """Find and read a checkpoint: `path` is its folder, or that of a run that saved it.

        Raises:
            UserError: there is none, or it is unfinished, damaged, foreign, of a newer format, or contradicts itself.
        """
        folder = find(Path(path).expanduser())
        file = folder / MANIFEST
        content = read_json(file, _AGAIN)
        if not {"format", "model"} <= content.keys():
            raise UserError(f"{file} is no checkpoint of qdit; give the folder of a run, or of a checkpoint")
        if content["format"] != FORMAT:
            raise UserError(
                f"{file} has format {content['format']}, and this qdit reads {FORMAT}; use the qdit that wrote it, or "
                "a newer one"
            )
        if content.keys() != _KEYS or content["digest"] != _digest(content):
            raise UserError(f"{file} is damaged (its digest differs); {_AGAIN}")
        _check(file, content)
        return cls(folder, content)

    @property
    def tensors(self) -> Path:
        """The file with the tensors."""
        return self.folder / TENSORS

    def check_tensors(self) -> None:
        """Compare the tensors with what was saved.

        Raises:
            UserError: they are missing, or of another save.
        """
        wanted = self.content["tensors"]
        if not self.tensors.exists():
            raise UserError(f"{self.tensors} is missing beside {MANIFEST}; copy the whole folder")
        if (size := size_of(self.tensors, _AGAIN)) != wanted["bytes"]:
            found = f"it has {size} bytes instead of {wanted['bytes']}"
        elif file_digest(self.tensors) != wanted["digest"]:
            found = "its digest differs"
        else:
            return
        raise UserError(f"{self.tensors} is damaged ({found}); {_AGAIN}")

    def bytes(self) -> int:
        """Size of both files."""
        return (self.folder / MANIFEST).stat().st_size + self.content["tensors"]["bytes"]

    @property
    def identity(self) -> str:
        """A digest of all that outputs depend on: the same for the same model, whoever saves it, and when."""
        return digest({key: self.content[key] for key in ("format", "base", "policy", "model", "tensors")})

    @property
    def source(self) -> dict[str, Any]:
        """The run that saved it, in a few values."""
        provenance = self.content["provenance"]
        config, git = provenance.get("config") or {}, provenance.get("git") or {}
        return {
            "quantizer": (config.get("quantizer") or {}).get("name"),
            **{key: config.get(key) for key in ("study", "name", "seed")},
            "run_id": provenance.get("run_id"),
            "commit": git.get("commit"),
            "saved": provenance.get("saved"),
        }


def _check(file: Path, content: dict[str, Any]) -> None:
    """Refuse a manifest of another form than `write` gives it, and one whose parts say different things.

    Raises:
        UserError: it is one.
    """
    try:
        _check_form(content)
        found = contradictions(content)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{file} is damaged (it is no checkpoint of format {FORMAT}: {what}); {_AGAIN}") from error
    if found:
        raise UserError(
            f"{file} contradicts itself: {'; '.join(found[:3])}. It was changed after it was saved; quantize anew"
        )


def _check_form(content: dict[str, Any]) -> None:
    """Compare the types of what is read of a manifest before its model is.

    Raises:
        KeyError, TypeError: something is missing, or of another type.
    """
    base, tensors, model, provenance = (content[key] for key in ("base", "tensors", "model", "provenance"))
    texts, groups = [base["digest"], base["dtype"], tensors["digest"]], [provenance, model["layers"], model["others"]]
    if (config := provenance.get("config")) is not None and config.keys() >= _NEEDED:
        scope = [*config["scope"]["roles"], *config["scope"]["include"], *config["scope"]["exclude"]]
        texts += [config["name"], config["bits"]["name"], *scope]
        groups += [config[key] for key in (*RECIPE_KEYS, "quantizer") if key in config]
    if not isinstance(tensors["bytes"], int) or not all(isinstance(each, str) for each in texts):
        raise TypeError("a name, a digest or a size is of another type")
    if not all(isinstance(each, dict) for each in groups):
        raise TypeError("a group is no mapping")


def find(path: Path) -> Path:
    """The folder of a checkpoint, given it or its run's.

    Raises:
        UserError: there is none.
    """
    places = (path, path / FOLDER)
    for place in places:
        if (place / MANIFEST).is_file():
            return place
    if any((place / TENSORS).is_file() for place in places):
        raise UserError(f"the checkpoint in {path} is unfinished ({MANIFEST} is missing); run again what wrote it")
    raise UserError(
        f"{path} holds no checkpoint ({MANIFEST}, or {FOLDER}/{MANIFEST}); give the folder of a run that was made with "
        "save_checkpoint=true; one of full precision has none"
    )


def write(folder: Path, content: dict[str, Any]) -> Manifest:
    """Finish a checkpoint whose tensors are written: with this file it begins to exist.

    Args:
        folder: where the tensors are.
        content: all keys but `format`, `tensors` and `digest`.
    """
    tensors = folder / TENSORS
    about = {"bytes": tensors.stat().st_size, "digest": file_digest(tensors)}
    whole = {"format": FORMAT, **content, "tensors": about}
    whole["digest"] = _digest(whole)
    write_json(folder / MANIFEST, whole)
    return Manifest(folder, whole)


def _digest(content: dict[str, Any]) -> str:
    return digest({k: v for k, v in content.items() if k != "digest"}, 32, blake2b)


def is_loaded(config: dict[str, Any]) -> bool:
    """Whether a config's recipe is that of a checkpoint (`quantizer=load`)."""
    return config["quantizer"].get("path") is not None


def with_recipe(config: dict[str, Any]) -> dict[str, Any]:
    """A config of `quantizer=load`, with the recipe, the bits and the name of the run that saved the checkpoint.

    Raises:
        UserError: the checkpoint is not there or not whole, or a part of a recipe was given beside it.
    """
    quantizer = config["quantizer"]
    beside = [key for key in RECIPE_KEYS if key in config and set(config[key]) - {"name"}]
    if beside:
        raise UserError(
            f"{' and '.join(beside)} cannot be chosen with quantizer={quantizer['name']}: the checkpoint has them; "
            "leave them out, or quantize anew"
        )
    if not isinstance(quantizer["path"], str):
        raise UserError(f"quantizer.path={quantizer['path']!r}; the folder of a run, or of its checkpoint, is needed")
    manifest = Manifest.read(quantizer["path"])
    saved = manifest.content["provenance"].get("config")
    if not isinstance(saved, dict) or not saved.keys() >= _NEEDED:
        raise UserError(
            f"{manifest.folder} was saved outside a run, and does not say its recipe; load it in Python with "
            "qdit.checkpoint.checkpoint.load"
        )
    recipe = {key: saved[key] for key in RECIPE_KEYS if key in saved}
    about = {"paper": saved["quantizer"].get("paper"), "source": manifest.source}
    about["checkpoint"] = manifest.identity
    name = config["name"]
    if name == f"{quantizer['name']}-{config['bits']['name']}":
        name = f"{quantizer['name']}-{saved['name']}"
    return {**config, **recipe, "quantizer": {**quantizer, **about}, "name": name}

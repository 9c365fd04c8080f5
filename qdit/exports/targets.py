"""What a quantized network can be exported to, and what hinders it: one table, for networks and for recipes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdit.checkpoint.installed import needed
from qdit.errors import UserError
from qdit.exports import torchao
from qdit.exports.forms import Form


@dataclass(frozen=True)
class Target:
    """A kind of folder.

    Args:
        needs: what is needed to read one.
        hindered: what hinders modules of some forms, with their names; `near` as in `qdit.exports.torchao.stock`.
        network: what is saved by diffusers in the place of a quantized network.
        imports: the lines of Python that come before it is read.
    """

    needs: str
    hindered: Callable[[Mapping[str, Form], bool], dict[str, list[str]]]
    network: Callable[[Any, bool], Any]
    imports: tuple[str, ...]


def _itself(model: Any, near: bool) -> Any:
    needed(model)
    return model


TARGETS = {
    "torchao": Target("diffusers and torchao", torchao.hindered, torchao.stock, ("import torch",)),
    "diffusers": Target("diffusers and qdit", lambda forms, near: {}, _itself, ("import torch", "import qdit")),
}


def target_of(name: str) -> Target:
    """A target by its name.

    Raises:
        UserError: there is none.
    """
    if name not in TARGETS:
        raise UserError(f"there is no export to {name!r}; there are {', '.join(TARGETS)}")
    return TARGETS[name]


def empty_folder(folder: str | Path) -> Path:
    """A folder in which nothing is: parts of an older export would be read along.

    Raises:
        UserError: something is there.
    """
    path = Path(folder).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is not empty; give a folder that is not there yet")
    return path


def saved(pipe: Any, network: Any, folder: Path) -> None:
    """Let diffusers save a network, and the rest of its pipeline.

    Args:
        pipe: it is afterwards as it was; None where there is none.
        network: that stands in the place of its transformer.
        folder: an empty one.
    """
    if pipe is None:
        network.save_pretrained(folder)
        return
    own = pipe.transformer
    try:
        pipe.register_modules(transformer=network)
        pipe.save_pretrained(folder)
    finally:
        pipe.register_modules(transformer=own)


def upload(folder: Path, repo: str) -> None:
    """Put a folder on the hub, in a repository that is made if need be.

    Args:
        folder: of an export.
        repo: `owner/name`.

    Raises:
        UserError: the hub refuses it, or is not reached.
    """
    from huggingface_hub import create_repo, upload_folder

    try:
        create_repo(repo, exist_ok=True)
        upload_folder(repo_id=repo, folder_path=folder)
    except Exception as error:  # the client's errors have no common base
        raise UserError(f"{folder} is written, and the hub does not take it as {repo}: {error}") from error

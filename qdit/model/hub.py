"""Models of the Hugging Face hub: which paths are ids there, and which commit a branch stands for.

A branch moves: today's `main` may be another model than last month's. So a run's config names the commit, which is part
of its protocol and id. The copy in the local cache has precedence: the commit that `main` stood for when it was fetched
is used, with network and without, until `model.revision` names another. Imports no torch.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Small files, of which a pipeline has the first and an autoencoder the second.
_WITNESSES = ("model_index.json", "config.json")
_PATIENCE = 10
"""Seconds in which the hub must answer."""
_PATHS = {"path": "revision", "vae_path": "vae_revision"}
"""The model's keys that may be ids, each with the key of its revision."""


def is_id(path: Any) -> bool:
    """Whether a path can only be meant as `owner/name` on the hub: nothing of this name lies here."""
    return isinstance(path, str) and bool(_ID.fullmatch(path)) and not Path(path).expanduser().exists()


@cache
def commit(repo: str, revision: str | None) -> str | None:
    """The commit that a branch or tag stands for (None is main): of the cached copy, else of the hub; None if unknown.

    A small file is fetched to know it, and the cache then does, too.
    """
    if revision and _COMMIT.fullmatch(revision):
        return revision
    known = _witnessed(repo, revision, here=True)
    if known is None and _answers(repo, revision):
        known = _witnessed(repo, revision, here=False)
    return known


def _witnessed(repo: str, revision: str | None, here: bool) -> str | None:
    """The commit whose small file lies in the local cache (`here`), or is fetched into it; None if there is none."""
    from huggingface_hub import hf_hub_download

    for name in _WITNESSES:
        try:
            file = Path(hf_hub_download(repo, name, revision=revision, local_files_only=here))
        except Exception:  # the client's errors have no common base; what is wrong is said when the model is loaded
            continue
        return file.parent.name  # <cache>/models--owner--name/snapshots/<commit>/<file>
    return None


def _answers(repo: str, revision: str | None) -> bool:
    """Whether the hub knows a model. It is asked once: a download without network is tried again for half a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(repo, revision=revision, timeout=_PATIENCE)
    except Exception:  # as above
        return False
    return True


def pinned(config: dict[str, Any]) -> dict[str, Any]:
    """A resolved config whose hub ids have the commits that their revisions stand for, as far as they are known."""
    model = config["model"]
    commits = {
        key: found
        for path, key in _PATHS.items()
        if is_id(model.get(path))
        and isinstance(revision := model.get(key), str | None)
        and (found := commit(model[path], revision)) is not None
    }
    return config | {"model": model | commits} if commits else config


def named(path: str | None, revision: str | None) -> str | None:
    """An id with its revision, where it has one; other paths as they are."""
    return path + at(path, revision) if path else path


def at(path: str | None, revision: str | None) -> str:
    """What stands behind the name of an id's model: `@` and its revision; nothing for other paths."""
    return f"@{revision}" if revision and is_id(path) else ""


def short(revision: str | None) -> str | None:
    """A commit as it is read: its first twelve digits."""
    return revision[:12] if revision and _COMMIT.fullmatch(revision) else revision

"""A hub model is pinned: the commit that its branch stands for is in the run's id and protocol, without network too."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers.configs import config as composed
from huggingface_hub import constants

from qdit.errors import UserError
from qdit.model import hub
from qdit.model.dit import DiT
from qdit.runs.identity import canonical, run_id

FIRST, SECOND = "a1" * 20, "b2" * 20


@pytest.fixture
def cache(tmp_path, tiny_pipeline, monkeypatch) -> Path:
    """A cache of the hub that holds `owner/tiny`, whose main is `FIRST`, and no network."""
    place = tmp_path / "models--owner--tiny"
    shutil.copytree(tiny_pipeline, place / "snapshots" / FIRST)
    shutil.copytree(tiny_pipeline / "vae", place / "snapshots" / SECOND)
    move(place, FIRST)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return place


def move(place: Path, commit: str) -> None:
    """Let the cache's main be another commit."""
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(commit)
    hub.commit.cache_clear()


def config(*changes: str) -> dict:
    return canonical(composed("quantizer=rtn", *changes))


def test_the_commit_is_part_of_id_and_protocol(cache):
    asked = ("model.path=owner/tiny", "model.vae_path=owner/tiny")
    first = config(*asked)
    assert (first["model"]["revision"], first["model"]["vae_revision"]) == (FIRST, FIRST)
    loader = DiT(**{k: v for k, v in first["model"].items() if k != "_target_"})
    assert loader.protocol().startswith(f"emoji_dit@{FIRST[:12]}|vae=owner/tiny@{FIRST[:12]}|")
    assert loader.load("cpu", torch.float32).image_size == 16  # from the cache alone
    assert run_id(config(*asked, "model.revision=main", f"model.vae_revision={FIRST}")) == run_id(first)
    move(cache, SECOND)
    second = config(*asked)
    assert (second["model"]["revision"], second["model"]["vae_revision"]) == (SECOND, SECOND)
    assert run_id(second) != run_id(first)
    assert run_id(config(*asked, f"model.revision={FIRST}", f"model.vae_revision={FIRST}")) == run_id(first)


def test_folders_and_the_embedded_model_have_no_commit(cache, tiny_pipeline, monkeypatch):
    monkeypatch.setattr(hub, "commit", lambda *_: pytest.fail("asked for a folder's commit"))
    for path in ("null", str(tiny_pipeline)):
        assert config(f"model.path={path}")["model"]["revision"] is None


def test_what_nobody_knows_is_said_when_the_model_is_loaded(cache):
    unknown = config("model.path=owner/other")["model"]
    assert unknown["revision"] is None
    with pytest.raises(UserError, match="owner/other: not a folder here, and not available from the hub"):
        DiT(name="other", path="owner/other").load("cpu", torch.float32)


def test_the_cache_comes_before_the_network(cache, monkeypatch):
    asked = []

    def download(repo, name, revision, local_files_only):
        asked.append((name, local_files_only))
        if local_files_only or name == "model_index.json":
            raise OSError("not here")
        return str(cache / "snapshots" / SECOND / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub.commit("owner/other", None) is None  # the hub does not answer
    assert not any(not here for _, here in asked)
    hub.commit.cache_clear()
    asked.clear()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    assert hub.commit("owner/other", None) == SECOND
    names = ["model_index.json", "config.json"]
    assert asked == [(name, here) for here in (True, False) for name in names]
    assert hub.commit("owner/other", FIRST) == FIRST  # says it itself
    assert len(asked) == 4

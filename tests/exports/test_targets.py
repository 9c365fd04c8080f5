"""The table of targets: what is saved, where, and that a pipeline is afterwards as it was."""

import pytest

from qdit.errors import UserError
from qdit.exports.targets import TARGETS, empty_folder, saved, target_of, upload


def test_an_unknown_target_is_refused_with_those_that_are_there():
    assert target_of("torchao") is TARGETS["torchao"]
    with pytest.raises(UserError, match="no export to 'onnx'; there are torchao, diffusers"):
        target_of("onnx")


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    assert empty_folder(tmp_path / "new") == tmp_path / "new"
    assert empty_folder(tmp_path) == tmp_path
    (tmp_path / "old.safetensors").touch()
    for path in (tmp_path, tmp_path / "old.safetensors"):
        with pytest.raises(UserError, match="is not empty"):
            empty_folder(path)


def test_a_pipeline_has_its_own_transformer_afterwards(tiny_pipe, tmp_path):
    own = tiny_pipe.transformer
    with pytest.raises(AttributeError):
        saved(tiny_pipe, object(), tmp_path / "mine")
    assert tiny_pipe.transformer is own


def test_only_a_quantized_network_can_be_exported(tiny_pipe):
    for target in TARGETS.values():
        with pytest.raises(UserError, match="is not quantized"):
            target.network(tiny_pipe.transformer, False)


def test_the_hub_is_given_the_folder_and_what_it_refuses_is_said(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("huggingface_hub.create_repo", lambda repo, **about: calls.append(repo))
    monkeypatch.setattr("huggingface_hub.upload_folder", lambda **about: calls.append(about))
    upload(tmp_path, "me/mine")
    assert calls == ["me/mine", {"repo_id": "me/mine", "folder_path": tmp_path}]

    def refuse(*_, **__):
        raise RuntimeError("no token")

    monkeypatch.setattr("huggingface_hub.create_repo", refuse)
    with pytest.raises(UserError, match="is written, and the hub does not take it as me/mine: no token"):
        upload(tmp_path, "me/mine")

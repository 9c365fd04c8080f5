"""The text encoder: variants and shards are read as one plain file is; what cannot be is refused by name."""

import json
import shutil

import pytest
import torch
from helpers.pipelines import write_text_pipeline

from qdit.errors import UserError
from qdit.model.pixart import PixArt
from qdit.model.text_encoders import T5_ALONE, load_encoders

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A pipeline; read only."""
    return write_text_pipeline(tmp_path_factory.mktemp("t5") / "pixart_sigma", "pixart_sigma")


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / "pixart_sigma")


def saved_again(folder, **options):
    network = load_encoders(folder, T5_ALONE, torch.float32, CPU).text_encoder
    (folder / "text_encoder" / "model.safetensors").unlink()
    network.save_pretrained(folder / "text_encoder", **options)
    return network.state_dict()


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"max_shard_size": "5KB"}], ids=["variant", "shards"])
def test_variants_and_shards_are_read_like_one_plain_file(folder, options):
    expected = saved_again(folder, **options)
    assert (len(list((folder / "text_encoder").glob("*.safetensors"))) > 1) == ("max_shard_size" in options)
    found = load_encoders(folder, T5_ALONE, torch.float32, CPU).text_encoder.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert {p.dtype for p in load_encoders(folder, T5_ALONE, torch.bfloat16, CPU).text_encoder.parameters()} == {
        torch.bfloat16
    }


def pickled(folder):
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "pytorch_model.bin")


def truncated(folder):
    file = folder / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def configured(folder, **changes):
    file = folder / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


DAMAGE = {
    "pickle": (pickled, r"only pytorch_model\.bin, a pickle, which can run code"),
    "truncated": (truncated, r"model\.safetensors is truncated or damaged"),
    "class": (lambda f: configured(f, model_type="umt5"), r"is of model_type umt5 .*; this adapter reads a T5"),
    "deeper": (lambda f: configured(f, num_layers=3), r"tensors are missing, such as encoder\.block\.2"),
    "vocabulary": (lambda f: (f / "tokenizer/tokenizer.json").unlink(), r"neither of tokenizer\.json, spiece\.model"),
    "tokenizer": (lambda f: (f / "tokenizer/tokenizer.json").write_text("{"), r"tokenizer cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_cannot_be_read_is_refused_by_name(folder, kind):
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_encoders(folder, T5_ALONE, torch.float32, CPU)


def test_a_foreign_transformer_is_refused_before_a_prompt_is_encoded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("qdit.model.text.load_encoders", lambda *_: pytest.fail("the encoder is loaded"))
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": 9}))
    with pytest.raises(UserError, match="sample_size=9 is not a multiple of patch_size=2"):
        PixArt(name="tiny", path=str(folder), text_length=12).encode(["a cat", ""], tmp_path / "cache", CPU)

"""A flipped bit in a file that is read back is named; files of a qdit without digests are read."""

import json
from contextlib import suppress

import pytest
import torch
from helpers.damage import flipped
from safetensors.torch import load_file, save_file

from qdit.errors import UserError
from qdit.storage.run_folder import RunDir
from qdit.storage.seal import Broken, sealed, verify
from qdit.storage.tensors import load_tensors, load_with_about, save_tensors

TENSORS = {"b": torch.arange(12.0).view(3, 4), "a": torch.arange(5), "c": torch.ones(3, dtype=torch.bfloat16)}


def test_tensors_come_back_in_their_order_with_what_they_are_of(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, {"of": "a model"})
    tensors, about = load_with_about(path)
    assert list(tensors) == list(TENSORS)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert about["of"] == "a model"
    assert load_file(path).keys() == TENSORS.keys()  # any reader of safetensors can read it


def test_tensors_lie_in_memory_as_without_a_digest(tmp_path):
    """The order of sums may depend on it."""
    save_file(TENSORS, tmp_path / "plain.safetensors")
    save_tensors(tmp_path / "sealed.safetensors", TENSORS, {"of": "x" * 17})
    plain, own = load_file(tmp_path / "plain.safetensors"), load_tensors(tmp_path / "sealed.safetensors")
    assert all(plain[name].data_ptr() % 64 == own[name].data_ptr() % 64 for name in TENSORS)


def test_sixteen_flipped_bits_of_tensors_are_named(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, {"of": "a model"})
    whole = path.read_bytes()
    for seed in range(200):
        path.write_bytes(flipped(whole, seed))
        with suppress(UserError):
            tensors = load_tensors(path)
            assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    path.write_bytes(flipped(whole, 1))
    with pytest.raises(UserError, match="x.safetensors is damaged"):
        load_tensors(path)


@pytest.mark.parametrize("content", [b"", b"cut", b"\xff" * 99, b"\x02" + bytes(7) + b"{}", b"\x02" + bytes(7) + b"[]"])
def test_no_file_of_tensors_is_named(content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    if content.endswith(b"{}"):
        assert load_tensors(path) == {}
    else:
        with pytest.raises(UserError, match="x.safetensors is damaged"):
            load_tensors(path)


def test_files_without_a_digest_are_read(tmp_path):
    save_file(TENSORS, tmp_path / "old.safetensors")
    assert load_tensors(tmp_path / "old.safetensors").keys() == TENSORS.keys()


def test_json_has_the_digest_of_what_will_be_read():
    value = {"b": {10: 1.5, 2: (1, 2)}, "a": None, "n": -0.0}
    read = json.loads(json.dumps(sealed(value)))
    assert verify(read)
    assert not verify(value)
    with pytest.raises(Broken):
        verify(read | {"a": 0})


def test_sixteen_flipped_bits_of_a_record_are_named(tmp_path):
    run, path = RunDir(tmp_path), tmp_path / "result.json"
    record = run.save_result({"schema": 1, "status": "done", "metrics": {"sqnr": {"value": 20.5}}, "name": "ä"})
    whole = path.read_bytes()
    for seed in range(200):
        path.write_bytes(flipped(whole, seed))
        with suppress(UserError):
            assert run.result() == record
    path.write_bytes(whole.replace(b"20.5", b"20.7"))
    with pytest.raises(UserError, match=r"result.json is damaged \(its digest differs\).*overwrite=true"):
        run.result()


def test_kept_metrics_are_of_their_samples_and_whole(tmp_path):
    run, path = RunDir(tmp_path), tmp_path / "metrics.json"
    run.save_metrics({"sqnr": {"value": 20.5}}, {"device": "cpu"})
    assert run.metrics({"device": "cpu"}) == {"sqnr": {"value": 20.5}}
    assert run.metrics({"device": "cuda"}) == {}
    path.write_text(path.read_text().replace("20.5", "20.7"))
    assert run.metrics({"device": "cpu"}) == {}
    path.write_text('{"sqnr": {"value": 20.5}}')  # of a qdit without digests
    assert run.metrics({"device": "cpu"}) == {"sqnr": {"value": 20.5}}

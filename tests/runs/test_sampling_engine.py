"""Runs whose samples OpenVINO makes: what their records say, what is not mixed, what is refused before it is fitted."""

from pathlib import Path

import pytest
import torch
from helpers.configs import composed
from safetensors.torch import load_file
from torch.testing import assert_close

from qdit.errors import UserError
from qdit.execution import has_int8
from qdit.runs import run as running

TINY = (
    "quantizer=rtn activation=tensor bits=w8a8 dataset=imagenet256 dataset.num_classes=10 dataset.image_size=16 "
    "sampler.steps=2 num_samples=4 batch_size=4 calibration.num_samples=4 eval=smoke device=cpu execution=openvino"
)
integers = pytest.mark.skipif(not has_int8(torch.device("cpu")), reason="no int8 instructions here")


def words(pipeline: Path, root: Path, *more: str) -> list[str]:
    places = [f"model.path={pipeline}", f"runs_dir={root / 'runs'}", f"cache_dir={root / 'cache'}"]
    given = {word.split("=")[0]: word for word in (*TINY.split(), *places, *more)}  # the last word on a key counts
    return list(given.values())


def run(*given: str) -> dict:
    record = running.run(composed(*given))
    assert record is not None
    return record


def latents(folder: Path) -> torch.Tensor:
    (file,) = (folder / "samples").glob("latents_*.safetensors")
    return load_file(file)["latents"]


@integers
def test_a_record_says_that_openvino_ran_and_nothing_is_mixed(tiny_pipeline, tmp_path, no_charts):
    version = pytest.importorskip("openvino").__version__
    given = words(tiny_pipeline, tmp_path)
    record = run(*given)
    (folder,) = (tmp_path / "runs" / "default").glob("rtn-*")
    assert (folder / "execution.txt").read_text() == "openvino\n"
    assert (record["made"]["execution"], record["cost"]["executed"]) == ("openvino", "openvino")
    assert version.startswith(record["made"]["openvino"])
    assert record["cost"]["executed_layers"] == {"openvino int8": 12}
    assert record["cost"]["resident_bytes"] is None
    assert record["cost"]["seconds"]["compile"] > 0
    assert run(*words(tiny_pipeline, tmp_path, "execution=auto")) == record
    with pytest.raises(UserError, match="execution=openvino, and execution=simulated is asked for"):
        run(*words(tiny_pipeline, tmp_path, "execution=simulated"))

    # A run that was begun so and goes on by itself keeps to it; one that is told otherwise makes its samples again.
    by_engine = latents(folder)
    (folder / "result.json").unlink()
    assert run(*words(tiny_pipeline, tmp_path, "execution=auto"))["made"] == record["made"]
    assert torch.equal(latents(folder), by_engine)
    (folder / "result.json").unlink()
    simulated = run(*words(tiny_pipeline, tmp_path, "execution=simulated"))
    assert "openvino" not in simulated["made"]
    assert simulated["cost"]["executed_layers"] == {"simulated": 12}
    assert not torch.equal(latents(folder), by_engine)
    assert_close(latents(folder), by_engine, rtol=0.02, atol=0.02)


@integers
def test_a_recipe_that_it_cannot_run_is_refused_before_it_is_fitted(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("qdit.execution.find_spec", lambda name: object())
    with pytest.raises(UserError, match="attn1.to_q and 11 more: weights in groups of 16.* \\(try weight=row\\)"):
        run(*words(tiny_pipeline, tmp_path, "weight=group", "weight.group_size=16"))
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").rglob("*.safetensors"))


def test_the_extra_is_named_where_the_package_is_missing(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("qdit.execution.has_int8", lambda device: True)
    monkeypatch.setattr("qdit.execution.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'qdit\[openvino\]'"):
        run(*words(tiny_pipeline, tmp_path))


def test_a_dry_run_asks_the_recipe_and_not_the_machine(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("qdit.execution.has_int8", lambda device: False)
    given = words(tiny_pipeline, tmp_path, "dry=true")
    assert running.run(composed(*given)) is None
    with pytest.raises(UserError, match="try weight=row"):
        running.run(composed(*given, "weight=group", "weight.group_size=16"))
    with pytest.raises(UserError, match="needs a processor with VNNI"):
        running.run(composed(*words(tiny_pipeline, tmp_path)))

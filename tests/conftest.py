"""Shared fixtures: a random pipeline and its model; a study of three methods."""

import gc
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported: no test asks the network

import pytest
import torch
from helpers.charts import undrawn
from helpers.fake_records import failed, fid, metric, record, write
from helpers.pipelines import write_pipeline

from qdit.model.dit import DiT

MATMUL = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
UNTUNED = MATMUL.fp32_precision
LONG = ("readme", "checkpoint_families", "run", "latte", "conf", "mixed_precision", "diffusers", "torchao", "notebooks")
LONG += ("devices",)
"""Files that take longest. A process takes a file at a time: begun last, one of these would have the other wait."""


def pytest_collection_modifyitems(items):
    """The long files first, the longest of them first of all."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


@pytest.fixture(scope="module", autouse=True)
def _lasting():
    """What lives when a file begins stays: half a million objects that each run would visit, collecting its garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_power_cut():
    """Nothing waits for the disk: no test takes the machine's power away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True)
def _untuned():
    """A run tunes its process (`qdit.execution.tune_cpu`): sums come in another order, which no other test must see."""
    MATMUL.fp32_precision = UNTUNED
    yield
    MATMUL.fp32_precision = UNTUNED


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory) -> Path:
    """The tiny pipeline's folder; read only."""
    return write_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture
def tiny_model(tiny_pipeline):
    """The tiny pipeline, loaded anew for each test, on the CPU in float32."""
    return DiT(name="tiny", path=str(tiny_pipeline)).load("cpu", torch.float32)


@pytest.fixture
def runs(tmp_path):
    """Full precision, three methods at two bits, one of which failed."""
    return write(
        tmp_path / "runs",
        record("fp", "w16a16", {"fid_lite0": metric(60.0, 1.0, higher=False)}),
        record("rtn", "w8a8", {"sqnr": metric(40.0, 0.4), "fid_lite0": fid(61.0)}),
        record("rtn", "w4a8", {"sqnr": metric(21.0, 0.4), "fid_lite0": fid(74.0)}),
        record("q_dit", "w8a8", {"sqnr": metric(40.5, 0.4), "fid_lite0": fid(60.2)}),
        record("q_dit", "w4a8", {"sqnr": metric(24.0, 0.4), "fid_lite0": fid(66.0)}),
        record("ptq4dit", "w8a8", {"sqnr": metric(38.0, 0.4), "fid_lite0": fid(63.0)}),
        failed("ptq4dit", "w4a8", "2 problems in this config:\n  group_size=96 does not divide 256\n  bits=1"),
    )


@pytest.fixture
def tiny_pipe(tiny_pipeline):
    """The tiny pipeline as diffusers' own, loaded anew for each test."""
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(tiny_pipeline, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def no_charts(monkeypatch):
    """Runs draw no charts: see `helpers.charts`."""
    undrawn(monkeypatch.setattr)

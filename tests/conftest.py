"""Shared fixtures: a random pipeline, and its model."""

from pathlib import Path

import pytest
import torch
from helpers.pipelines import write_pipeline

from qdit.model.dit import DiT

MATMUL = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
UNTUNED = MATMUL.fp32_precision


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


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

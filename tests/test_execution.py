"""The kernels that a run chooses, by a table or as it began: the same numbers, and the process as it was afterwards."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from qdit import execution
from qdit.errors import UserError
from qdit.execution import INT8, INT8_ROWS, OPENVINO, SHORT, SIMULATED, attending, executing, faster, stamp, way
from qdit.storage.shelf import without_execution


@pytest.mark.parametrize("keys", [SHORT, SHORT + 1])
def test_either_kernel_of_attention_gives_the_same_and_the_switch_goes_back(keys):
    q, k, v = torch.randn(3, 2, 4, keys, 8)
    fused = torch.backends.cuda.flash_sdp_enabled()
    with attending(torch.device("cpu"), keys):
        assert torch.backends.cuda.flash_sdp_enabled() == (fused and keys > SHORT)
        found = scaled_dot_product_attention(q, k, v)
    assert torch.backends.cuda.flash_sdp_enabled() == fused
    weights = (q.double() @ k.double().mT / 8**0.5).softmax(-1)
    assert_close(found.double(), weights @ v.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("integers", "kernel", "expected"), [(True, True, INT8), (True, False, INT8_ROWS), (False, True, SIMULATED)]
)
def test_auto_takes_what_the_table_says_and_keeps_what_was_begun(integers, kernel, expected, monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr(execution, "has_int8", lambda device: integers)
    monkeypatch.setattr(execution.native, "available", lambda: kernel)
    assert faster(device) is expected
    for begun, kept in ((None, expected), ("simulated", SIMULATED), ("int8", INT8 if integers else SIMULATED)):
        with executing("auto", device, begun):
            assert way() is kept
    with executing("simulated", device, "int8"):
        assert way() is SIMULATED


def test_ways_take_products_by_their_groups():
    taken = {way.name: (way.takes(1), way.takes(9)) for way in execution.WAYS.values()}
    simulated = dict.fromkeys(("simulated", "openvino"), (False, False))
    rows = dict.fromkeys(("int8 by rows", "fp8"), (True, False))
    assert taken == simulated | rows | {"int8": (True, True)}


def test_an_engine_samples_and_single_layers_are_simulated_then(monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr(execution, "lacks_openvino", lambda device: None)
    monkeypatch.setattr(execution, "version", lambda package: "1.2")
    with executing("openvino", device):
        assert (way().engine, way().layers) == (True, "simulated")
        assert stamp(device)["execution"] == "simulated"
        sampled = stamp(device, sampled=True)
        assert (sampled["execution"], sampled["openvino"]) == ("openvino", "1.2")
        assert without_execution(sampled) == without_execution(stamp(device, execution=False))
    with executing("auto", device, "openvino"):
        assert way() is OPENVINO
    with executing("simulated", device):
        assert stamp(device, sampled=True) == stamp(device)


@pytest.mark.parametrize(
    ("device", "integers", "package", "told"),
    [
        ("meta", True, True, "device=meta is chosen; use device=cpu"),
        ("cpu", False, True, "a processor with VNNI"),
        ("cpu", True, False, r"pip install 'qdit\[openvino\]'"),
    ],
)
def test_openvino_is_refused_where_it_has_no_integers(device, integers, package, told, monkeypatch):
    monkeypatch.setattr(execution, "has_int8", lambda device: integers)
    monkeypatch.setattr(execution, "find_spec", lambda name: object() if package else None)
    with pytest.raises(UserError, match=told), executing("openvino", torch.device(device)):
        pass
    assert way() is SIMULATED
    with executing("auto", torch.device(device), "openvino"):  # a run that began with it goes on as it can
        assert not way().engine


MEMORY = """
from pathlib import Path
import torch
from qdit.environment import release
from qdit.execution import tune_cpu

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

tune_cpu()
before = resident()
blocks = [torch.ones(32_000_000) for _ in range(4)]
full = resident()
del blocks
release()
print(full - before, resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="no /proc")
def test_memory_of_a_model_that_has_gone_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    full, after = map(float, done.stdout.split())
    assert full > 500
    assert after < 100

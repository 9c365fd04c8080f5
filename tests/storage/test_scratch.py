"""Large tensors in memory and on disk: equal in all but their place, of which nothing is left."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from qdit.errors import UserError
from qdit.storage.scratch import Scratch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.long])
@pytest.mark.parametrize(("shape", "order"), [((5, 4, 3), None), ((5, 4, 3), (0, 2, 1)), ((2, 3, 4, 5), (0, 2, 3, 1))])
def test_a_tensor_on_disk_is_as_one_in_memory(tmp_path, dtype, shape, order):
    memory, disk = (Scratch(tmp_path / "new", budget).empty(shape, dtype, order) for budget in (2**20, 0))
    values = (100 * torch.randn(shape)).to(dtype)
    for made in (memory, disk):
        made.copy_(values)
        assert torch.equal(made, values)
        assert torch.equal(made[1:2], values[1:2])
    assert (memory.dtype, memory.shape, memory.stride()) == (disk.dtype, disk.shape, disk.stride())
    assert os.listdir(tmp_path / "new") == []


def test_memory_is_used_up_to_the_budget_and_again_once_it_is_free(tmp_path):
    scratch = Scratch(tmp_path, 6000)
    first, second = (scratch.empty((1000,), torch.float32) for _ in range(2))
    assert scratch.left == 2000  # the second lies on disk
    del first
    assert scratch.left == 6000
    second.fill_(1.0)
    assert second.sum() == 1000


def test_a_killed_process_leaves_nothing(tmp_path):
    code = (
        "import os, signal, sys, torch; from pathlib import Path; from qdit.storage.scratch import Scratch;"
        "x = Scratch(Path(sys.argv[1]), 0).empty((1000,), torch.float32).fill_(1); print(float(x.sum()), flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "1000.0\n"), done.stderr
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**30))
    with pytest.raises(
        UserError, match=r"cannot keep 4.0 GiB of activations in .*: 1.0 GiB are free; make room, choose"
    ):
        Scratch(tmp_path, 0).empty((2**30,), torch.float32)

"""A multirun on joblib: the serial results, shared work done once, threads that do not crowd, resume, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load

pytestmark = pytest.mark.slow  # each is several processes; tests/cli/test_main.py has a multirun in one

TINY = [
    *("dataset=imagenet256", "dataset.num_classes=10", "dataset.image_size=16", "dataset.reference=emoji"),
    *("sampler.steps=2", "num_samples=12", "batch_size=4", "calibration.num_samples=8", "eval=smoke", "device=cpu"),
]
GRID = ["-m", "study=sweep", "quantizer=quarot,smoothquant", "bits=w4a4"]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
# As in tests/runs/test_run.py: the last bits of a product depend on the number of threads.
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def command(pipeline: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "qdit.cli.main", *GRID, *TINY, f"model.path={pipeline}", *words]


def sweep(pipeline: Path, root: Path, *words: str) -> subprocess.CompletedProcess:
    root.mkdir(exist_ok=True)
    return subprocess.run(command(pipeline, *words), cwd=root, capture_output=True, text=True, env=ONE_THREAD)


def results(root: Path) -> dict[str, tuple]:
    """By run folder: what must not depend on how it was launched."""
    found = {}
    for path in (root / "runs" / "sweep").glob("*/result.json"):
        record = json.loads(path.read_text())
        chunks = {p.name: p.read_bytes() for p in path.parent.glob("samples/*.safetensors")}
        found[path.parent.name] = (record["status"], record["metrics"], record.get("layers"), chunks)
    return found


@pytest.fixture(scope="module")
def serial(tiny_pipeline, tmp_path_factory) -> dict[str, tuple]:
    root = tmp_path_factory.mktemp("serial")
    done = sweep(tiny_pipeline, root)
    assert done.returncode == 0, done.stderr
    return results(root)


def test_a_run_keeps_what_tables_and_figures_compare(serial):
    for name, (_, metrics, _, kept) in serial.items():
        assert load(kept["images.safetensors"])["images"].shape == (4, 3, 16, 16)  # of the first chunk
        if not name.startswith("fp"):
            each = load(kept["values.safetensors"])[f"sqnr@{metrics['sqnr']['settings']}"]
            assert each.shape == (12,)
            assert each.mean() == pytest.approx(metrics["sqnr"]["value"])


def test_joblib_gives_the_serial_results_and_shares_the_work(serial, tiny_pipeline, tmp_path):
    done = sweep(tiny_pipeline, tmp_path, *JOBLIB)
    assert done.returncode == 0, done.stderr
    assert len(serial) == 3  # full precision and two cells
    assert results(tmp_path) == serial
    output = done.stdout + done.stderr
    assert output.count("calibrating: 8 points") == 1  # both recipes use the same points
    assert output.count("  pictures: runs/sweep/fp-") == 1
    assert done.stdout.count("| quarot") == 1


def test_killed_on_joblib_and_restarted(serial, tiny_pipeline, tmp_path):
    process = subprocess.Popen(
        command(tiny_pipeline, *JOBLIB),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ONE_THREAD,
        start_new_session=True,  # a group of its own, to be killed whole
    )
    deadline = time.time() + 240
    while time.time() < deadline and not list(tmp_path.glob("runs/sweep/[qs]*/samples/latents_00001*")):
        assert process.poll() is None, "the sweep ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(results(tmp_path)) < 3
    assert sweep(tiny_pipeline, tmp_path, *JOBLIB).returncode == 0
    assert results(tmp_path) == serial


@pytest.mark.slow  # of joblib and torch alone
def test_workers_divide_the_cores():
    code = (
        "from joblib import Parallel, delayed\n"
        "def threads():\n    import torch\n    return torch.get_num_threads()\n"
        "print(Parallel(n_jobs=2)(delayed(threads)() for _ in range(2)))"
    )
    environment = {key: value for key, value in os.environ.items() if not key.endswith("NUM_THREADS")}
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert json.loads(printed.stdout) == [share, share]


def test_a_failure_that_no_record_holds_reaches_the_exit_code_from_another_process(tiny_pipeline, tmp_path):
    # A name that is no folder's has no place for a record; the cells differ, or the sweep would be refused whole.
    grid = ["-m", "study=sweep", "name=.hidden,shown", *TINY, f"model.path={tiny_pipeline}", "num_samples=0", *JOBLIB]
    done = subprocess.run(
        [sys.executable, "-m", "qdit.cli.main", *grid], cwd=tmp_path, capture_output=True, text=True, env=ONE_THREAD
    )
    assert done.returncode == 2, done.stderr
    assert "a name of one folder is needed" in done.stderr
    assert not list((tmp_path / "runs").rglob(".sweep-*"))

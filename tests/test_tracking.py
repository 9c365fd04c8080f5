"""Trackers: an offline W&B run is really made, and its file is read back record by record."""

import json
import logging
import os
import struct
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from omegaconf import OmegaConf

from qdit import tracking
from qdit.config import build, type_problems
from qdit.environment import release
from qdit.errors import UserError
from qdit.tracking import weights_and_biases

matplotlib.use("Agg")
CONF = Path(__file__).parents[1] / "conf" / "logger"
CONFIG = {"study": "s", "bits": {"name": "w4a8", "weight": 4}, "runs_dir": "/secret", "logger": {"mode": "offline"}}
RECORD = {
    "status": "done",
    "protocol": "emoji_dit|emoji|N=16|seed=0",
    "protocol_id": "12345678",
    "metrics": {
        "sqnr": {"value": 21.5, "stderr": 0.4, "n": 16, "higher_is_better": True, "delta": None, "delta_stderr": None},
        "fid_lite0": {"value": 66.0, "stderr": 1.0, "n": 16, "delta": 6.0, "delta_stderr": 0.5},
    },
    "curves": {"sqnr_per_timestep": {"x": [999, 949], "y": [30.0, 29.0], "xlabel": "timestep", "ylabel": "SQNR (dB)"}},
    "layers": [{"site": "blocks.0.to_q", "role": "qkv", "block": 0, "weight_bits": 4, "sqnr": 25.5}],
    "cost": {"weight_bits_model": 5.1, "seconds": {"sample": 30.0}, "samples_per_second": None},
}


def logger(option: str):
    return build(OmegaConf.load(CONF / f"{option}.yaml"))


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    """No key, no home: what a fresh machine has. Nothing is written outside tmp_path."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))


def run_directory(path: Path) -> Path:
    from PIL import Image

    path.mkdir(parents=True)
    (path / "policy.yaml").write_text("blocks.0.to_q: {weight: 4}\n")
    (path / "result.json").write_text(json.dumps(RECORD))
    for name in ("samples.png", "layers.png"):
        Image.new("RGB", (8, 8), "red").save(path / name)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(path / "samples_moving.png", save_all=True, append_images=frames[1:])
    return path


def wandb_records(file: Path) -> list:
    """Read W&B's transaction log: LevelDB's record format behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def key(item) -> str:
    return item.key or "/".join(item.nested_key)


def test_options_name_real_arguments():
    for file in CONF.glob("*.yaml"):
        assert type_problems(dict(OmegaConf.load(file)), "logger") == []


def test_no_tracker_reports_nothing(tmp_path):
    with logger("none").open({}, "s", "rtn-w4a8", "1a2b3c4d", tmp_path) as tracker:
        tracker.log({"loss": 1.0}, 0, "calibrate")
        tracker.finish(RECORD, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_module_does_not_import_wandb():
    code = "import sys, qdit.tracking; assert not {'wandb', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_offline_run_holds_config_metrics_media_and_artifacts(tmp_path, no_account, caplog):
    import wandb

    run_dir = run_directory(tmp_path / "runs" / "s" / "rtn-w4a8-1a2b3c4d")
    with (
        caplog.at_level(logging.INFO, "qdit"),
        logger("wandb_offline").open(CONFIG, "s", "rtn-w4a8", "1a2b3c4d", run_dir) as tracker,
    ):
        for step, loss in enumerate((3.0, 2.0)):
            tracker.log({"loss": loss}, step, "calibrate")
        tracker.finish(RECORD, run_dir)
    wandb.teardown()  # finish() returns before the service has flushed its file; the end of a process waits like this
    assert "wandb sync" in caplog.text
    [file] = (run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    records = wandb_records(file)

    [run] = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.run_group, run.job_type, run.display_name) == ("s-1a2b3c4d", "s", "ptq", "rtn-w4a8")
    config = {key(item): json.loads(item.value_json) for item in run.config.update}
    assert config["bits"] == {"name": "w4a8", "weight": 4}
    assert not {"runs_dir", "logger"} & config.keys()

    summary = {key(i): json.loads(i.value_json) for record in records for i in record.summary.update}
    assert summary["sqnr"] == 21.5
    assert summary["fid_lite0_delta"] == 6.0
    assert summary["cost/seconds.sample"] == 30.0
    assert "sqnr_delta" not in summary  # missing is missing

    history = [{key(i): json.loads(i.value_json) for i in record.history.item} for record in records]
    assert [h["calibrate/loss"] for h in history if "calibrate/loss" in h] == [3.0, 2.0]
    [media] = [h for h in history if "samples/_type" in h]
    kinds = {name: media[f"{name}/_type"] for name in ("samples", "clips", "charts/layers", "layers")}
    images = {"samples": "image-file", "charts/layers": "image-file"}
    assert kinds == images | {"clips": "video-file", "layers": "table-file"}
    assert next((file.parent / "files").rglob("clips_*.gif")).read_bytes()[:3] == b"GIF"
    table = json.loads(next((file.parent / "files").rglob("layers_*.table.json")).read_text())
    assert table["data"] == [["blocks.0.to_q", "qkv", 0, 4, 25.5]]
    defined = {record.metric.glob_name or record.metric.name for record in records}
    assert {"calibrate/*", "calibrate/step"} <= defined
    assert {"policy", "result"} <= {record.artifact.type for record in records}


@pytest.mark.parametrize("shape", [(3, 3, 8, 6), (3, 2, 3, 8, 6)], ids=["images", "clips"])
def test_samples_are_a_table_with_prompts_and_values(shape, tmp_path, no_account):
    import torch

    from qdit.storage.run_folder import IMAGES, VALUES
    from qdit.storage.tensors import save_tensors
    from qdit.tracking.samples import samples_table

    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    captions = ["a rocket", "a key", "fire"]
    metrics = {"sqnr": {"settings": "aa"}, "fid_lite0": {"settings": "bb"}, "psnr": {"settings": "newer"}}
    assert samples_table(tmp_path, metrics) is None
    save_tensors(tmp_path / IMAGES, {"images": images}, {"captions": json.dumps(captions)})
    save_tensors(tmp_path / VALUES, {"sqnr@aa": torch.tensor([1.0, 2.0, 3.0, 4.0]), "psnr@cc": torch.zeros(4)})
    table = samples_table(tmp_path, metrics)
    assert table is not None
    assert table.columns == ["sample", "prompt", "image", "sqnr"]
    assert [(row[0], row[1], row[3]) for row in table.data] == [
        (0, "a rocket", 1.0),
        (1, "a key", 2.0),
        (2, "fire", 3.0),
    ]
    assert table.data[0][2].image.size == ((12, 8) if len(shape) == 5 else (6, 8))
    (tmp_path / IMAGES).write_bytes(b"half")
    assert samples_table(tmp_path, metrics) is None


def test_a_study_has_a_run_of_its_own_from_which_it_can_be_made_again(runs, no_account):
    import wandb

    for folder in (runs / "s").iterdir():
        (folder / "config.yaml").write_text(f"name: {folder.name}\n")
    tracking.compared(logger("wandb_offline"), "s", runs / "s", lambda: "<table>q_dit</table>")
    wandb.teardown()
    [file] = (runs / "s" / "wandb").glob("offline-run-*/run-*.wandb")
    records = wandb_records(file)
    [run] = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.run_group, run.job_type) == ("s-study", "s", "study")
    table = json.loads(next((file.parent / "files").rglob("runs_*.table.json")).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert len(rows) == 7
    found = {(row["quantizer"], row["bits"]): row["sqnr"] for row in rows}
    assert (found["rtn", "w8a8"], found["q_dit", "w4a8"], found["ptq4dit", "w4a8"]) == (40.0, 24.0, None)
    page = next((file.parent / "files").rglob("comparison_*.html")).read_text()
    assert "q_dit" in page
    assert "<table" in page
    [made_of] = [record.artifact for record in records if record.artifact.type == "study"]
    assert {entry.path.rpartition("/")[2] for entry in made_of.manifest.contents} == {"config.yaml", "result.json"}
    assert len(made_of.manifest.contents) == 14


def test_a_study_without_a_page_has_its_runs_and_what_made_them(runs, no_account, caplog):
    import wandb

    def page():
        raise UserError("the runs are of two models; narrow them to one")

    with caplog.at_level(logging.INFO, "qdit"):
        tracking.compared(logger("wandb_offline"), "s", runs / "s", page)
    wandb.teardown()
    [file] = (runs / "s" / "wandb").glob("offline-run-*/run-*.wandb")
    assert "without its page (the runs are of two models" in caplog.text
    assert next((file.parent / "files").rglob("runs_*.table.json"))
    assert not list((file.parent / "files").rglob("comparison_*"))
    assert "study" in {record.artifact.type for record in wandb_records(file)}


@pytest.mark.parametrize("option", ["csv", "wandb_offline"])
def test_a_report_is_whole_where_the_record_was_told_as_it_is(option, tmp_path, no_account):
    (tmp_path / "result.json").write_text(json.dumps(RECORD))
    config = CONFIG | {"name": "n"}
    with (
        pytest.raises(KeyboardInterrupt),
        tracking.reporting(logger(option), config, "1a2b3c4d", tmp_path),
    ):
        raise KeyboardInterrupt  # an attempt that leaves a file, which is no report
    assert not tracking.reported(logger(option), tmp_path)
    with tracking.reporting(logger(option), config, "1a2b3c4d", tmp_path) as tracker:
        tracker.finish(RECORD, tmp_path)
    assert tracking.reported(logger(option), tmp_path)
    (tmp_path / "result.json").write_text(json.dumps(RECORD | {"protocol": "with another metric"}))
    assert not tracking.reported(logger(option), tmp_path)


@pytest.mark.parametrize(
    ("word", "mode", "said"),
    [
        ("", "offline", "no WANDB_API_KEY"),
        ("Offline", "offline", "offline mode was chosen"),
        ("dryrun", "offline", "offline mode was chosen"),
        ("shared", "offline", "WANDB_MODE=shared: qdit knows online, offline, disabled"),
        ("Disabled", "disabled", None),
    ],
)
def test_a_mode_that_the_environment_names_is_understood_or_told(
    word, mode, said, tmp_path, no_account, monkeypatch, caplog
):
    monkeypatch.setenv("WANDB_MODE", word)
    with (
        caplog.at_level(logging.INFO, "qdit"),
        logger("wandb").open(CONFIG, "s", "rtn-w4a8", "1a2b3c4d", tmp_path / "run") as tracker,
    ):
        assert tracker.run.settings.mode == mode
        tracker.finish({"status": "done"}, tmp_path / "run")
    assert said in caplog.text if said else not caplog.text
    assert ("upload later" in caplog.text) == (mode == "offline")
    assert os.environ["WANDB_MODE"] == word
    assert (tmp_path / "run" / ".reported-wandb").exists() == (mode == "offline")


def test_memory_is_a_curve_beside_the_others_in_any_logger(tmp_path, no_account, monkeypatch):
    import pandas as pd
    import torch
    import wandb

    release()  # what tests before this one left would be taken, which is resident already
    now = iter([100.0, 100.2, 100.9, 103.5, 200.0, 200.2, 200.9, 203.5])
    monkeypatch.setattr("qdit.tracking.base.monotonic", lambda: next(now))
    held = []
    for option in ("wandb_offline", "csv"):
        with tracking.reporting(logger(option), CONFIG | {"name": "n"}, "1a2b3c4d", tmp_path / option) as tracker:
            for step in range(3):
                tracker.log({"samples": step}, step, "sampling")
                held.append(torch.ones(32_000_000))  # 128 MB, which the next value sees
    wandb.teardown()
    [file] = (tmp_path / "wandb_offline" / "wandb").glob("offline-run-*/run-*.wandb")
    history = [{key(i): json.loads(i.value_json) for i in each.history.item} for each in wandb_records(file)]
    curve = [(h["memory/step"], h["memory/resident"], h["memory/resident_peak"]) for h in history if "memory/step" in h]
    assert [seconds for seconds, _, _ in curve] == [0, 3]  # not twice in a second
    assert 120 < curve[1][1] - curve[0][1] < 400
    assert all(peak >= resident > 50 for _, resident, peak in curve)
    written = pd.read_csv(tmp_path / "csv" / "progress.csv").query("stage == 'memory' and name == 'resident'")
    assert written.step.tolist() == [0, 3]
    assert written.value.iloc[1] - written.value.iloc[0] > 120


def test_a_study_that_cannot_be_reported_costs_nothing(tmp_path, caplog, no_account):
    tracking.compared(logger("wandb_offline"), "s", tmp_path / "none", lambda: "")
    assert "the logger failed, and the run goes on" in caplog.text


def test_online_without_a_key_becomes_offline(tmp_path, no_account, caplog):
    with (
        caplog.at_level(logging.INFO, "qdit"),
        logger("wandb").open(CONFIG, "s", "rtn-w4a8", "1a2b3c4d", tmp_path / "run") as tracker,
    ):
        assert tracker.run.settings.mode == "offline"
    assert "no WANDB_API_KEY" in caplog.text
    assert f"wandb sync {tmp_path / 'run'}/wandb/offline-run-*" in caplog.text


def test_online_without_a_network_becomes_offline(tmp_path, no_account, monkeypatch, caplog):
    import wandb
    from wandb.errors import CommError

    tried, real = [], wandb.init

    def init(**options):
        tried.append((options["mode"], options.get("resume")))
        if options["mode"] == "online":
            raise CommError("Timed out while retrying\nmore")
        return real(**options)

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb, "init", init)
    with (
        caplog.at_level(logging.INFO, "qdit"),
        tracking.WandbTracker().open(CONFIG, "s", "n", "1a2b3c4d", tmp_path),
    ):
        pass
    assert tried == [("online", "allow"), ("offline", None)]
    assert "offline (Timed out while retrying)" in caplog.text


def test_credentials_are_found_in_netrc(tmp_path, no_account, monkeypatch):
    assert not weights_and_biases.has_credentials()
    file = tmp_path / "netrc"
    file.write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.setenv("NETRC", str(file))
    assert weights_and_biases.has_credentials()


class Broken:
    """A logger that fails where it is told to, or everywhere."""

    def __init__(self, *where):
        self.where = where

    def fail(self, place):
        if place in self.where:
            raise RuntimeError(f"broken {place}\nmore")

    def knows(self, run_dir):
        self.fail("knows")
        return False

    def open(self, config, study, name, run_id, run_dir):
        self.fail("open")
        return self

    def __enter__(self):
        self.fail("enter")
        return self

    def __exit__(self, *about):
        self.fail("exit")

    def log(self, values, step, stage):
        self.fail("log")

    def finish(self, record, run_dir):
        self.fail("finish")


@pytest.mark.parametrize("place", ["open", "enter", "log", "finish", "exit"])
def test_no_exception_of_a_logger_reaches_the_run(place, tmp_path, caplog):
    with tracking.reporting(Broken(place), {"study": "s", "name": "n"}, "1a2b3c4d", tmp_path) as tracker:
        for step in range(3):
            tracker.log({"loss": 1.0}, step, "search")
        tracker.finish(RECORD, tmp_path)
    assert caplog.messages == [f"the logger failed, and the run goes on (RuntimeError: broken {place})"]
    assert not tracking.reported(Broken(), tmp_path)
    assert tracking.reported(Broken("knows"), tmp_path)


@pytest.mark.parametrize("error", [ValueError("the run's own"), KeyboardInterrupt()])
def test_an_exception_of_the_run_comes_through_whatever_the_logger_does(error, tmp_path):
    opened = tracking.reporting(Broken("exit"), {"study": "s", "name": "n"}, "1a2b3c4d", tmp_path)
    with pytest.raises(type(error)) as caught, opened:
        raise error
    assert caught.value is error


@pytest.mark.parametrize("study", ["table 1", "50%", "a:b", "it's, no; #?", "x" * 150])
def test_wandb_takes_every_study(study):
    import wandb

    found = wandb.Settings(run_id=weights_and_biases.acceptable_id(study, "1a2b3c4d")).run_id
    assert found.endswith("-1a2b3c4d")
    assert len(found) <= 128


def test_csv_has_a_line_a_value_goes_on_when_resumed_and_begins_anew_when_overwritten(tmp_path):
    import pandas as pd

    csv, run = logger("csv"), tmp_path / "rtn-w4a8-1a2b3c4d"
    assert not csv.knows(run)
    for number in (1, 2):  # the second is a resumed run
        with tracking.reporting(csv, CONFIG | {"name": "rtn-w4a8"}, "1a2b3c4d", run) as tracker:
            tracker.log(lambda number=number: {"loss": 0.5 / number, "flipped": 0.25}, number, "rounding")
            tracker.finish(RECORD, run)
    found = pd.read_csv(run / "progress.csv")
    rounding = found[found.stage == "rounding"].pivot(index="step", columns="name", values="value")
    assert rounding.loss.tolist() == [0.5, 0.25]
    final = found[found.stage == "final"].set_index("name").value
    assert final["sqnr"].tolist() == [21.5, 21.5]
    assert final["fid_lite0_stderr"].tolist() == [1.0, 1.0]
    with tracking.reporting(csv, CONFIG | {"name": "rtn-w4a8", "overwrite": True}, "1a2b3c4d", run):
        pass
    assert (run / "progress.csv").read_text() == "seconds,stage,step,name,value\n"

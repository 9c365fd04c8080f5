"""The main job from end to end on a tiny random pipeline: record, resume, extension, identity of full precision."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.configs import composed

from qdit.config import resolved
from qdit.errors import UserError
from qdit.execution import has_int8
from qdit.nn.compiled import Compiled
from qdit.runs import identity
from qdit.runs import run as running
from qdit.runs.settled import record_failure
from qdit.sampler.sampler import Sampler
from qdit.storage.run_folder import RunDir
from qdit.tracking import NoTracker

N = 40  # the least that a jackknife of 20 groups takes
TINY = (
    "quantizer=rtn dataset=imagenet256 dataset.num_classes=10 dataset.image_size=16 dataset.reference=emoji "
    f"sampler.steps=3 num_samples={N} batch_size=10 calibration.num_samples=8"
).split()


def overrides(pipeline: Path, root: Path, *more: str) -> list[str]:
    places = [f"model.path={pipeline}", f"runs_dir={root / 'runs'}", f"cache_dir={root / 'cache'}", "device=cpu"]
    words = {word.split("=")[0]: word for word in (*TINY, *places, *more)}  # the last word on a key counts
    return list(words.values())


def run(*words: str) -> dict:
    record = running.run(composed(*words))
    assert record is not None
    return record


@pytest.fixture(scope="module")
def finished(tiny_pipeline, tmp_path_factory):
    """A finished default run and the folder that holds it."""
    root = tmp_path_factory.mktemp("finished")
    return run(*overrides(tiny_pipeline, root)), root


def test_record_and_files(finished):
    record, root = finished
    folder = root / "runs" / "default" / f"rtn-w4a8-{record['run_id']}"
    assert json.loads((folder / "result.json").read_text()) == record
    assert {p.name for p in folder.iterdir()} >= {
        *("result.json", "config.yaml", "policy.yaml", "samples.png", "layers.png", "timesteps.png", "samples")
    }
    assert record["metrics"].keys() == {"sqnr", "psnr", "ssim", "fid_lite0", "sfid_lite0", "is_lite0", "kid_lite0"}
    assert all(m["stderr"] > 0 and m["n"] == N for m in record["metrics"].values())
    assert record["cost"]["executed"] == ("int8" if has_int8(torch.device("cpu")) else "simulated")
    assert record["cost"]["weight_bits_quantized"] > 4
    assert record["cost"]["resident_bytes"] > 0
    assert sum(record["cost"]["executed_layers"].values()) == 12
    assert (folder / "execution.txt").read_text().strip() == record["made"]["execution"]
    assert len(record["layers"]) == 12
    assert len(record["curves"]["sqnr_per_timestep"]["y"]) == 3
    assert not list(root.rglob("*.tmp"))


def test_full_precision_is_recorded_beside_it(finished):
    record, root = finished
    (path,) = (root / "runs" / "default").glob("fp-*/result.json")
    reference = json.loads(path.read_text())
    assert reference["protocol_id"] == record["protocol_id"]
    assert reference["cost"]["weight_bits_model"] == 16
    # That counts 16 bits a weight; what positions add is a buffer.
    assert 2 <= reference["cost"]["resident_bytes"] / reference["cost"]["model_bytes"] < 2.05
    assert "sqnr" not in reference["metrics"]
    assert reference["metrics"]["fid_lite0"]["delta"] is None


def test_the_same_command_returns_at_once(finished, tiny_pipeline, monkeypatch):
    record, root = finished
    monkeypatch.setattr("qdit.runs.setup.assemble", lambda config: pytest.fail("a finished run was assembled again"))
    assert run(*overrides(tiny_pipeline, root)) == record


def test_an_added_metric_is_the_only_one_computed(finished, tiny_pipeline, monkeypatch):
    record, root = finished
    monkeypatch.setattr(Sampler, "step", lambda *a: pytest.fail("samples were made again"), raising=True)
    monkeypatch.setattr("qdit.method.quantize", lambda *a, **k: pytest.fail("the model was quantized again"))
    from qdit.eval import distribution

    monkeypatch.setattr(distribution.FID, "compute", lambda *a: pytest.fail("a finished metric was computed again"))
    extended = run(*overrides(tiny_pipeline, root, "eval=[fidelity,precision_lite0]"))
    assert extended["metrics"].keys() - record["metrics"].keys() == {"precision_lite0"}
    assert all(extended["metrics"][k] == v for k, v in record["metrics"].items())


def test_a_metric_that_fails_leaves_the_finished_record(finished, tiny_pipeline):
    record, root = finished
    words = overrides(tiny_pipeline, root, "eval=[fidelity,fid]", "inception_weights=/nowhere")
    cfg = composed(*words)
    with pytest.raises(UserError, match="/nowhere") as error:
        running.run(cfg)
    assert record_failure(cfg, error.value, "user")
    noted = json.loads((identity.run_dir(resolved(cfg)).path / "result.json").read_text())
    assert noted["status"] == "done"
    assert "/nowhere" in noted["update_error"]
    assert noted["metrics"].items() >= record["metrics"].items()
    assert run(*overrides(tiny_pipeline, root, "eval=[fidelity]"))["metrics"].items() >= record["metrics"].items()


def test_metrics_survive_a_failure_of_the_next_one(tiny_pipeline, tmp_path, monkeypatch, no_charts):
    from qdit.eval.paired import SSIM

    words = overrides(tiny_pipeline, tmp_path, "eval=paired")
    with monkeypatch.context() as patch:
        patch.setattr(SSIM, "compute", lambda *a: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            run(*words)
    (kept,) = (tmp_path / "runs").glob("*/rtn*/metrics.json")
    before = json.loads(kept.read_text())
    assert {"made", "digest"} <= before.keys()
    before = {name: metric for name, metric in before.items() if name not in ("made", "digest")}
    assert "sqnr" in before
    assert "ssim" not in before
    monkeypatch.setattr("qdit.eval.paired.SQNR.compute", lambda *a: pytest.fail("a kept metric was computed again"))
    assert run(*words)["metrics"].items() >= before.items()
    assert not kept.exists()


def test_overwrite_computes_the_run_again_and_not_its_reference(tiny_pipeline, tmp_path, no_charts):
    words = overrides(tiny_pipeline, tmp_path, "eval=smoke")
    first = run(*words)
    (reference,) = (tmp_path / "runs").glob("*/fp-*/result.json")
    (chunk,) = (tmp_path / "runs").glob("*/rtn*/samples/latents_00000*")
    times = reference.stat().st_mtime_ns, chunk.stat().st_mtime_ns
    again = run(*words, "overwrite=true")
    assert again["metrics"] == first["metrics"]
    assert reference.stat().st_mtime_ns == times[0]
    assert chunk.stat().st_mtime_ns > times[1]
    chunk = next((tmp_path / "cache/samples").glob("*/latents_00000*"))
    before = chunk.stat().st_mtime_ns
    assert run(*overrides(tiny_pipeline, tmp_path, "eval=smoke", "quantizer=fp", "overwrite=true"))["name"] == "fp"
    assert chunk.stat().st_mtime_ns > before


def test_a_checkpoint_with_another_config_is_another_run(tiny_pipeline, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_pipeline, copy)
    config = {"model": {"path": str(copy)}}
    before = identity.weights(config)
    assert before == identity.weights({"model": {"path": str(tiny_pipeline)}})
    file = copy / "transformer" / "config.json"
    file.write_text(file.read_text().replace('"norm_eps": 1e-05', '"norm_eps": 1e-06'))
    assert identity.weights(config) != before


def test_a_logger_is_told_of_a_run_that_was_finished_without_it(finished, tiny_pipeline, monkeypatch):
    _, root = finished
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = overrides(tiny_pipeline, root, "logger=wandb_offline")
    record = run(*words)
    folder = root / "runs" / "default" / f"rtn-w4a8-{record['run_id']}"
    told = list((folder / "wandb").glob("offline-run-*"))
    assert len(told) == 1
    run(*words)
    assert list((folder / "wandb").glob("offline-run-*")) == told


@pytest.mark.slow
def test_killed_in_the_middle_of_sampling_and_restarted(finished, tiny_pipeline, tmp_path):
    record, _ = finished
    words = overrides(tiny_pipeline, tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "qdit.cli.main", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as here: the last bits of a product depend on the threads
    )
    deadline = time.time() + 240
    while time.time() < deadline and not list((tmp_path / "runs").glob("*/rtn*/samples/latents_00001*")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("runs/*/rtn*/result.json"))
    assert run(*words)["metrics"] == record["metrics"]


def test_full_precision_is_bit_identical_after_a_run(tiny_pipeline, tmp_path, monkeypatch):
    from qdit.runs import setup as assembling

    kept = {}
    original = assembling.assemble

    def assemble(config):
        parts = original(config)
        x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([500, 20]), torch.tensor([1, 2])
        kept.update(parts=parts, inputs=(x, t, y), before=parts.model.denoise(x, t, y))
        return parts

    monkeypatch.setattr(assembling, "assemble", assemble)
    run(*overrides(tiny_pipeline, tmp_path, "eval=smoke", "bits=w4a4"))
    assert torch.equal(kept["parts"].model.denoise(*kept["inputs"]), kept["before"])


@pytest.mark.parametrize(
    "choice",
    [  # a composition takes long: options that do not touch each other share a run
        "weight=group weight.group_size=16 weight/range=mse activation=group activation.group_size=16",
        "weight=tensor weight/range=percentile activation=tensor activation/range=mse scope=all",
        "weight.grid=symmetric_full activation=tensor activation/range=percentile calibration=normal sampler=ddpm",
        "weight/range=hessian activation=tensor activation/range=hessian calibration=paired sampler=dpm_solver",
        "scope=all weight/range=hessian weight/range/target=diffusion_loss rounding=gptq dtype=bfloat16",
        "activation=time_grouped activation.time.groups=2 activation/regions=gelu activation/range=hessian "
        "weight/range=hessian weight=group weight.group_size=16 attention=multi_region rounding=gptq",
        "weight/range=percentile_mse weight.grid=asymmetric_free activation=tensor activation/range=percentile_mse",
        "attention=uniform attention/range=minmax activation=tensor transform=salience rounding=gptq",
        "activation=multi_region activation/time=ranges activation.time.groups=2 attention=uniform rounding=gptq",
        "attention=multi_region attention/probabilities=released_sum activation/regions=gelu dtype=bfloat16",
        "attention=log_sqrt2 transform=smooth bits=w4a16 sampler=dit_ddim",
        "quantizer=q_dit weight.group_size=16 activation.group_size=16 attention=multi_region activation/regions=gelu",
        *(f"quantizer=tq_dit activation.time.groups=3 {more}" for more in ("bits=w8a8", "weight=row rounding=gptq")),
        *("quantizer=ptq4vit bits=w6a6", "quantizer=repq_vit transform/range=minmax bits=w8a8"),
        *(f"quantizer={name} rounding.iterations=3" for name in ("ptq4dit", "q_diffusion", "ptq4dm")),
        *("quantizer=ptq4dit rounding=nearest dtype=bfloat16", "quantizer=ptq4dit rounding=gptq bits=w8a8"),
        "activation=tensor calibration=random scope=blocks_adaln sampler=dit_ddpm",
        "transform=salience transform/statistic=middle rounding=gptq sampler.guidance=1",
        *("transform=salience transform/statistic=row activation=tensor bits=w8a16", "quantizer=smoothquant bits=w3a8"),
        "scope=all transform=smooth transform.roles=[qkv,attn_out,ffn_up,ffn_down,adaln,embedder,final]",
        "transform=smooth quantizer=q_dit weight.group_size=16 activation.group_size=16 dtype=bfloat16",
        "quantizer=fp",
    ],
)
def test_every_part_runs_end_to_end(choice, tiny_pipeline, tmp_path, no_charts):
    words = overrides(tiny_pipeline, tmp_path, "eval=smoke", "num_samples=4", "batch_size=2", *choice.split())
    record = run(*words)
    if "quantizer=fp" in choice:
        assert record["metrics"] == {}
        assert record["name"] == "fp"
    else:
        assert 0 < record["metrics"]["sqnr"]["value"] < 120


def test_more_bits_are_better_and_sixteen_are_exact(tiny_pipeline, tmp_path, no_charts):
    def sqnr(bits):
        words = overrides(tiny_pipeline, tmp_path, "eval=smoke", f"bits={bits}", "num_samples=8", "batch_size=8")
        return run(*words)["metrics"]["sqnr"]["value"]

    values = [sqnr(bits) for bits in ("w4a4", "w6a6", "w8a8", "w16a16")]
    assert values == sorted(values)
    assert values[-1] == 120


def test_dry_writes_nothing(tiny_pipeline, tmp_path, capsys):
    assert running.run(composed(*overrides(tiny_pipeline, tmp_path, "dry=true"))) is None
    printed = capsys.readouterr().out
    assert "12 of 21 sites quantized" in printed
    assert "adaln is not in scope.roles" in printed
    assert "refused" not in printed
    assert not list(tmp_path.iterdir())


def test_dry_says_what_a_run_here_would_be_refused_for(tiny_pipeline, tmp_path, capsys):
    """And prints the plan all the same, which may be of another machine."""
    words = overrides(tiny_pipeline, tmp_path, "dry=true", "eval=fid_lite0", "dataset.reference=cats")
    assert running.run(composed(*words)) is None
    printed = " ".join(capsys.readouterr().out.split())
    assert "12 of 21 sites quantized" in printed
    assert "a run would be refused on this machine, until this is mended:" in printed
    assert "no lite0 reference statistics of cats" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dry", ["true", "false"])
def test_int8_without_integers_on_both_sides_is_refused(tiny_pipeline, tmp_path, dry):
    words = overrides(tiny_pipeline, tmp_path, f"dry={dry}", "execution=int8", "bits=w4a16")
    with pytest.raises(UserError, match=r"execution=int8 multiplies .* no layer of w4a16 .* use bits=w4a8"):
        running.run(composed(*words))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("weight=group weight.group_size=24", r"weight.group_size=24 does not divide .*\(32 inputs\); 16 and 32 do"),
        ("device=cuda:7", "device=cuda:7 is not here; this machine has cpu"),
        ("model.path=/nowhere/at/all", "nowhere/at/all"),
        ("dataset.num_classes=11", "11 classes, the model 10"),
        ("scope.roles=[attention]", "scope.roles has 'attention'; this model has"),
        ("scope.exclude=[nothing.*]", "matches none of the model's 21 sites"),
        ("activation=tensor calibration=none", "calibration=none gives none; use calibration=uniform"),
        ("eval=fid", "weights"),
        ("eval=fidelity num_samples=8", "8 samples are too few"),
        ("eval=temporal_flickering", "needs a model that makes videos; imagenet-like"),
        ("sampler.guidance=0", "sampler.guidance=0"),
        ("sampler.steps=2000", "sampler.steps=2000; allowed"),
        ("seed=-1", "seed=-1; allowed: a whole number of at least 0"),
        ("calibration.seed=-1", "calibration.seed=-1; allowed: a whole number of at least 0"),
        ("study=a/b", "study='a/b'; a name of one folder"),
        ("study=2026_11_28", "study=20261128; a name is text; write it in quotes"),
        ("quantizer.name={}", "quantizer.name={}; a name is text"),
        ("sampler.guidance=nan", "sampler.guidance=nan; a finite number is needed"),
        ("+dataset.some.list=[1,[inf]]", "dataset.some.list.1.0=inf; a finite number is needed"),
        ("study=''", "study=''; a name of one folder"),
        ("runs_dir=null", "runs_dir=None; a folder is needed"),
        ("model.path=7", "model.path=7; a folder, a hub id or null"),
    ],
)
def test_a_users_mistake_is_one_message_and_leaves_nothing(override, message, tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.delenv("QDIT_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    words = overrides(tiny_pipeline, tmp_path, "eval=smoke", "model.name=imagenet-like", *override.split())
    with pytest.raises(UserError, match=message):
        run(*words)
    assert not list(tmp_path.rglob("result.json"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_two_runs_in_one_directory(tiny_pipeline, tmp_path, finished):
    record, root = finished
    folder = root / "runs" / "default" / f"rtn-w4a8-{record['run_id']}"
    with (
        RunDir(folder).lock(),
        pytest.raises(UserError, match="in use by another qdit process"),
        RunDir(folder).lock(),
    ):
        pass


def test_a_damaged_record_is_named(finished, tiny_pipeline):
    record, root = finished
    file = root / "runs" / "default" / f"rtn-w4a8-{record['run_id']}" / "result.json"
    good = file.read_text()
    try:
        file.write_text(good[:100])
        with pytest.raises(UserError, match=r"result.json is not a result record .*overwrite=true"):
            run(*overrides(tiny_pipeline, root))
    finally:
        file.write_text(good)


@pytest.mark.parametrize(
    "quantizer", ["q_dit weight.group_size=16 activation.group_size=16", "ptq4dit rounding.iterations=3"]
)
def test_every_stage_reports_its_curves(quantizer, tiny_pipeline, tmp_path, monkeypatch, no_charts):
    told: dict[str, list[dict[str, float]]] = {}

    def log(self, values, step, stage):
        assert step == len(told.setdefault(stage, [])) or stage in ("sampling", "evaluation", "rounding", "memory")
        told[stage].append(values() if callable(values) else values)

    monkeypatch.setattr(NoTracker, "log", log)
    record = run(*overrides(tiny_pipeline, tmp_path, *f"quantizer={quantizer} eval=paired num_samples=4".split()))
    assert told.keys() == {"calibration", "rounding", "sampling", "evaluation", "memory"}
    assert sum(each["points"] for each in told["calibration"]) == 8
    measured = {name: value for each in told["evaluation"] for name, value in each.items()}
    assert measured == {name: metric["value"] for name, metric in record["metrics"].items()}
    rounded = told["rounding"]
    if "ptq4dit" in quantizer:
        assert all(each.keys() == {"error", "error_nearest", "moved_codes"} for each in rounded)
        assert 0 < sum(each["moved_codes"] for each in rounded) < len(rounded)
    else:
        assert len(rounded) == sum(layer["weight_bits"] is not None for layer in record["layers"])
        assert all(each["output_sqnr"] > each["weight_sqnr"] for each in rounded)  # that is what GPTQ is for


def test_samples_of_a_compiled_network_say_so(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("qdit.runs.sampling.Compiled", partial(Compiled, backend="eager"))
    words = overrides(tiny_pipeline, tmp_path)
    record = run(*words, "compile=true")
    assert record["made"]["compiled"] == "whole"
    assert record["cost"]["seconds"]["compile"] > 0
    assert run(*words)["finished"] == record["finished"]  # a finished record answers whatever made it
    plain = run(*words, "study=plain")
    assert "compiled" not in plain["made"]
    assert "compile" not in plain["cost"]["seconds"]
    assert plain["metrics"]["sqnr"]["value"] == pytest.approx(record["metrics"]["sqnr"]["value"], abs=1e-3)

"""Every option of conf/eval composes, under its own key, and builds the class it names."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from qdit.eval.base import Metric
from qdit.eval.distribution import DistributionMetric
from qdit.eval.vbench.external import External
from qdit.eval.vbench.totals import DIMENSIONS, QUALITY, SEMANTIC

CONF = Path(__file__).resolve().parents[1] / "conf"
BUNDLES = {
    "fidelity": "sqnr psnr ssim fid_lite0 sfid_lite0 is_lite0 kid_lite0",
    "paired": "sqnr latent_mse psnr ssim",
    "smoke": "sqnr",
    "adm": "fid sfid is precision recall",
    "none": "",
    "text_offline": "sqnr psnr ssim feature_distance_lite0",
    "emoji_prompts": "sqnr psnr ssim feature_distance_lite0 emoji_match_lite0 emoji_match5_lite0",
    "video_offline": "sqnr sqnr_worst_frame psnr psnr_worst_frame ssim temporal_difference_error temporal_flickering "
    "motion_energy motion_smoothness_blend subject_consistency_lite0",
}
BUNDLES["vbench_quality7"] = (
    "subject_consistency background_consistency temporal_flickering aesthetic_quality imaging_quality dynamic_degree "
    "motion_smoothness"
)
BUNDLES["vbench16"] = f"{BUNDLES['vbench_quality7']} {' '.join(SEMANTIC)}"
BUNDLES["vbench_viditq8"] = (
    "imaging_quality aesthetic_quality motion_smoothness dynamic_degree background_consistency subject_consistency "
    "scene overall_consistency"
)
BUNDLES["vbench_custom"] = (
    "subject_consistency background_consistency motion_smoothness dynamic_degree aesthetic_quality imaging_quality "
    "overall_consistency temporal_style"
)
ASKED_OF_CLIPS = "motion_match motion_error subject_match_lite0 subject_match5_lite0"
BUNDLES["emoji_motions"] = f"{BUNDLES['video_offline']} {ASKED_OF_CLIPS}"
OPTIONS = sorted(path.stem for path in (CONF / "eval").glob("*.yaml"))
METRICS = [name for name in OPTIONS if name not in {*BUNDLES, "all_lite0"}]


@pytest.fixture
def composed(tmp_path):
    """Compose with a primary config of our own, so that only conf/eval is under test."""
    (tmp_path / "config.yaml").write_text("defaults: [{eval: [fidelity]}, _self_]\ninception_weights: null\n")

    def make(*overrides: str) -> dict:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            cfg = compose("config", [*overrides, f"hydra.searchpath=[file://{CONF}]"])
        found = OmegaConf.to_container(cfg.eval, resolve=True)
        assert isinstance(found, dict)
        return found

    return make


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_its_own_key_and_names_its_extractor(composed, name):
    found = composed(f"eval={name}")
    assert list(found) == [name]
    metric = instantiate(found[name])
    assert isinstance(metric, Metric)
    if isinstance(metric, DistributionMetric):
        usual = "lite0" if name.endswith("_lite0") else "inception"
        assert metric.extractor == ("clip_l14_336" if name == "cmmd" else usual)
    with pytest.raises(AttributeError):
        metric.extractor = "other"


@pytest.mark.parametrize("name", BUNDLES)
def test_bundles(composed, name):
    assert list(composed(f"eval={name}")) == BUNDLES[name].split()
    assert list(composed(f"eval=[{name}]")) == BUNDLES[name].split()


@pytest.mark.parametrize(("name", "dimensions"), [("vbench16", DIMENSIONS), ("vbench_quality7", QUALITY)])
def test_what_has_a_total_is_of_one_protocol(composed, name, dimensions):
    found = {name: instantiate(node) for name, node in composed(f"eval={name}").items()}
    assert found.keys() == dimensions.keys()
    assert all(isinstance(metric, External) and metric.dimension == name for name, metric in found.items())


def test_lists_add_up_and_overrides_reach_a_metric(composed):
    assert list(composed()) == BUNDLES["fidelity"].split()
    assert list(composed("eval=[fidelity,precision_lite0]")) == [*BUNDLES["fidelity"].split(), "precision_lite0"]
    assert list(composed("eval=[fidelity,paired]")) == [*BUNDLES["fidelity"].split(), "latent_mse"]
    assert "ssim" not in composed("~eval.ssim")
    whole = composed("eval=all_lite0")
    offline = {m for m in METRICS if m.endswith("_lite0") and "distribution" in composed(f"eval={m}")[m]["_target_"]}
    assert set(whole) == offline | set(BUNDLES["paired"].split())


def test_inception_weights_come_from_the_top_level(composed):
    found = composed("eval=[fid,kid]", "inception_weights=/some/file.pth", "+allow_download=true")
    assert {m["weights"] for m in found.values()} == {"/some/file.pth"}
    assert {m["allow_download"] for m in found.values()} == {True}
    assert composed("eval=fid")["fid"] == {
        "_target_": "qdit.eval.distribution.FID",
        "extractor": "inception",
        "weights": None,
        "allow_download": False,
    }

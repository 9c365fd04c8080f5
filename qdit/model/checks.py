"""Checks of the configs of a pipeline from outside: each value is checked before diffusers sees it.

diffusers itself accepts too much: an unknown class is built as another one, a missing value becomes a default, and a
wrong one ends in a traceback hours later.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdit.errors import from_problems

log = logging.getLogger("qdit")
Values = dict[str, Any]
BETA_SCHEDULERS = ("DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler")
"""Classes whose training schedule (betas) is what qdit's samplers walk on."""
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
"""Classes of models that were trained to match a flow: straight lines from noise to data, times that are floats."""
COGVIDEOX_SCHEDULERS = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
"""Classes of betas whose signal-to-noise ratio is shifted, so that no other scheduler can walk on them."""
SCHEDULERS = (*BETA_SCHEDULERS, *FLOW_SCHEDULERS, *COGVIDEOX_SCHEDULERS, "UniPCMultistepScheduler")
FLOW = "flow_prediction"
"""What UniPC and DPM-Solver call a velocity."""
PREDICTIONS = ("epsilon", "sample", "v_prediction")
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
ACTIVATIONS = ("gelu", "gelu-approximate")
_MOST = 1 << 16  # of what is counted in a config: channels, heads, layers, classes


class Keys:
    """The values of one config file, and what is wrong with them."""

    def __init__(self, file: Path, values: Values) -> None:
        self.file, self.values = file, values
        self.problems: list[str] = []

    def expect(self, key: str, fits: Callable[[Any], bool], allowed: str, optional: bool = False) -> bool:
        """Note a problem unless the value fits; an optional one may be missing, or null."""
        value = self.values.get(key)
        if (optional and value is None) or (value is not None and fits(value)):
            return True
        found = f"{key}={repr(value)[:80]}" if key in self.values else f"{key} is missing"
        self.problems.append(f"{self.file}: {found}; allowed: {allowed}")
        return False

    def whole(self, *keys: str, least: int = 1, most: int = _MOST, optional: bool = False) -> bool:
        """Expect whole numbers."""
        text = f"a whole number of {least} to {most}"
        return all([self.expect(key, lambda v: whole(v) and least <= v <= most, text, optional) for key in keys])

    def positive(self, *keys: str, optional: bool = False) -> None:
        """Expect finite numbers above 0."""
        for key in keys:
            self.expect(key, lambda v: number(v) and v > 0, "a finite number above 0", optional)

    def one_of(self, key: str, choices: tuple[Any, ...], optional: bool = False) -> bool:
        """Expect one of a few values."""
        return self.expect(
            key, lambda v: any(type(v) is type(c) and v == c for c in choices), ", ".join(map(str, choices)), optional
        )

    def flag(self, *keys: str) -> None:
        """Expect true, false or nothing."""
        for key in keys:
            self.expect(key, lambda v: isinstance(v, bool), "true, false", optional=True)

    def finish(self) -> None:
        """Raise one error for all problems, if there is any.

        Raises:
            UserError: naming the file, the key, what was found and what is allowed.
        """
        if self.problems:
            raise from_problems(self.problems, f"{self.file}")


def whole(value: Any) -> bool:
    """Whether this is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def number(value: Any) -> bool:
    """Whether this is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e30 < value < 1e30


def check_dit(file: Path, config: Values) -> None:
    """Check the config of a diffusers DiT.

    Raises:
        UserError: naming each value that cannot be.
    """
    check_denoiser(file, config, "num_embeds_ada_norm", norm_type="ada_norm_zero")


def check_denoiser(file: Path, config: Values, *counts: str, norm_type: str) -> None:
    """Check the config of a diffusers DiT, PixArt or Latte, which have most keys in common.

    Args:
        file: of the config.
        config: its values.
        counts: further whole numbers of the class.
        norm_type: the one that the class knows.

    Raises:
        UserError: naming each value that cannot be.
    """
    keys = Keys(file, config)
    unquantized(keys)
    keys.whole("num_attention_heads", "attention_head_dim", "in_channels", "num_layers", *counts)
    if keys.whole("sample_size", most=2048) and keys.whole("patch_size") and (rest := _rest(config)):
        keys.problems.append(
            f"{file}: sample_size={config['sample_size']} is not a multiple of patch_size={config['patch_size']} "
            f"(rest {rest}); the latents cannot be cut into patches"
        )
    if isinstance(channels := config.get("in_channels"), int):
        keys.one_of("out_channels", (channels, 2 * channels), optional=True)
    keys.one_of("activation_fn", ACTIVATIONS, optional=True)
    keys.one_of("norm_type", (norm_type,), optional=True)
    keys.flag("attention_bias", "upcast_attention", "norm_elementwise_affine")
    keys.positive("norm_eps", optional=True)
    keys.expect("dropout", lambda v: number(v) and 0 <= v < 1, "a number of 0 to 1", optional=True)
    keys.finish()


def _rest(config: Values) -> int:
    return config["sample_size"] % config["patch_size"]


def check_autoencoder(file: Path, config: Values) -> None:
    """Check the config of a diffusers AutoencoderKL of RGB images.

    Raises:
        UserError: naming each value that cannot be.
    """
    keys = Keys(file, config)
    unquantized(keys)
    keys.whole("latent_channels")
    keys.whole("layers_per_block", "norm_num_groups", optional=True)
    keys.one_of("in_channels", (3,))
    keys.one_of("out_channels", (3,))

    def widths(value: Any) -> bool:
        return isinstance(value, list) and 1 <= len(value) <= 10 and all(whole(v) and 1 <= v <= _MOST for v in value)

    keys.expect("block_out_channels", widths, "a list of 1 to 10 whole numbers")
    keys.positive("scaling_factor", optional=True)  # Stable Diffusion's own lack it, and mean diffusers' .18215
    keys.expect("shift_factor", number, "a finite number", optional=True)
    for key in ("latents_mean", "latents_std"):
        keys.expect(key, lambda _: False, "null: latents of a mean and deviation are not supported", optional=True)
    keys.finish()


def check_schedule(file: Path, config: Values, allowed: tuple[str, ...] = BETA_SCHEDULERS) -> None:
    """Check the noise schedule of the training; missing values are refused, because diffusers would assume defaults.

    Args:
        file: of the config.
        config: its values.
        allowed: the classes that a family's schedulers may have.

    Raises:
        UserError: another scheduler, or values that it cannot have.
    """
    keys = Keys(file, config)
    if not keys.one_of("_class_name", allowed):
        keys.finish()  # its other keys mean something else
    keys.whole("num_train_timesteps", least=2, most=100_000)
    if config["_class_name"] in FLOW_SCHEDULERS:
        _check_flow(keys)
        return
    multistep = config["_class_name"] == "DPMSolverMultistepScheduler" and config.get("prediction_type") == FLOW
    if multistep or config["_class_name"] == "UniPCMultistepScheduler":  # of which flows alone are known here
        keys.one_of("prediction_type", (FLOW,))
        keys.one_of("algorithm_type", ("dpmsolver++",), optional=True)
        keys.one_of("use_flow_sigmas", (True,))
        keys.positive("flow_shift")
        keys.whole("solver_order", most=3, optional=True)
        keys.one_of("thresholding", (False,), optional=True)
        keys.finish()
        return
    keys.one_of("prediction_type", PREDICTIONS)
    if config.get("trained_betas") is not None:
        steps = config.get("num_train_timesteps")

        def betas(value: Any) -> bool:
            return isinstance(value, list) and len(value) == steps and all(number(v) and 0 < v < 1 for v in value)

        keys.expect("trained_betas", betas, f"null, or a list of {steps} numbers between 0 and 1")
    elif keys.one_of("beta_schedule", BETAS) and config["beta_schedule"] != "squaredcos_cap_v2":
        for key in ("beta_start", "beta_end"):
            keys.expect(key, lambda v: number(v) and 0 < v < 1, "a number between 0 and 1")
    keys.flag("clip_sample", "rescale_betas_zero_snr", "set_alpha_to_one")
    keys.positive("snr_shift_scale", optional=True)
    keys.one_of("thresholding", (False,), optional=True)
    keys.finish()
    if config.get("clip_sample"):
        log.warning("%s has clip_sample=true; qdit does not clip the predicted image, as latents have no range", file)


def _check_flow(keys: Keys) -> None:
    """Check the shift of the times; whatever draws noise or reverses the time is refused.

    Raises:
        UserError: values that they cannot have.
    """
    keys.positive("shift", "base_shift", "max_shift", optional=True)
    keys.whole("base_image_seq_len", "max_image_seq_len", optional=True)
    keys.one_of("time_shift_type", ("exponential", "linear"), optional=True)
    keys.flag("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    for key in ("invert_sigmas", "stochastic_sampling"):
        keys.one_of(key, (False,), optional=True)
    keys.finish()


def predicts(config: Values) -> str:
    """What a network was trained to predict, by its scheduler's config: epsilon, sample, v_prediction or velocity."""
    if config.get("_class_name") in FLOW_SCHEDULERS or config.get("prediction_type") == FLOW:
        return "velocity"
    return config.get("prediction_type", "epsilon")


def unquantized(keys: Keys) -> None:
    """Note a model that another library has quantized."""
    if (found := keys.values.get("quantization_config")) is not None:
        method = found.get("quant_method") if isinstance(found, dict) else None
        keys.problems.append(
            f"{keys.file}: the model is quantized already (quantization_config of {method or 'an unknown method'}); "
            "qdit quantizes models in floating point: give the original"
        )

"""The card of an exported model: the README.md that the Hugging Face hub shows, with metrics that it can read.

It says what was quantized and how, the effective bits with everything counted, the metrics with their errors and the
protocol they were taken under, the command that made them, and the lines that read the folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qdit.ledger import Ledger

_BETTER = {True: "↑", False: "↓", None: "—"}
"""By a metric's direction; without one, what is nearer to full precision's is better."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a card tells."""

    name: str
    target: str
    needs: str
    loading: tuple[str, ...]
    """Lines of Python."""
    cost: Ledger
    near: bool = False
    base: str | None = None
    """The hub id of the original."""
    config: Mapping[str, Any] | None = None
    """Of the recipe, as a run's config has it."""
    record: Mapping[str, Any] | None = None
    """Of the run that it comes from."""
    command: str | None = None
    """That carries out this run."""
    task: str = "unconditional-image-generation"
    """In the hub's words."""


def card(about: About) -> Any:
    """The card, a `huggingface_hub.ModelCard`."""
    from huggingface_hub import ModelCard, ModelCardData

    results = [_result(about, name, metric) for name, metric in _metrics(about).items()]
    data = ModelCardData(
        base_model=about.base,
        base_model_relation="quantized" if about.base else None,
        library_name="diffusers",
        tags=["qdit", "quantized", about.target],
        pipeline_tag=about.task,
        model_name=about.name,
        eval_results=results or None,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(about)}")


def _metrics(about: About) -> dict[str, Any]:
    return dict(about.record["metrics"]) if about.record is not None else {}


def _result(about: About, name: str, metric: Mapping[str, Any]) -> Any:
    from huggingface_hub import EvalResult

    assert about.record is not None
    data, errors = about.record["config"]["dataset.name"], {key: metric.get(key) for key in ("stderr", "n", "delta")}
    return EvalResult(
        task_type=about.task,
        dataset_type=data,
        dataset_name=data,
        dataset_args={"protocol": about.record["protocol"]},
        metric_type=name,
        metric_name=name,
        metric_value=metric["value"],
        metric_args={key: value for key, value in errors.items() if value is not None},
    )


def _text(about: About) -> str:
    """The card below its head."""
    cost, recipe = about.cost, (about.config or {}).get("quantizer") or {}
    paper = f" ({recipe['paper']})" if recipe.get("paper") else ""
    quantized = "none" if cost.weight_bits_quantized is None else f"{cost.weight_bits_quantized:.2f}"
    inputs = "none" if cost.input_bits is None else f"{cost.input_bits:.2f}"
    parts = [
        f"# {about.name}",
        f"Quantized by qdit's recipe `{recipe.get('name', 'of a Python script')}`{paper}; read by {about.needs}:",
        "```python\n" + "\n".join(about.loading) + "\n```",
        "## Effective bits\n\nMean bits, with scales, zero points, branches and what stays in 16 bits counted.",
        "| quantized weights | all weights | inputs | share of quantized weights |\n|---|---|---|---|\n"
        f"| {quantized} | {cost.weight_bits_model:.2f} | {inputs} | {100 * cost.quantized_share:.1f} % |",
    ]
    if about.near:
        parts.append("Symmetric inputs are rounded with torchao's steps, of max / 127.5 instead of qdit's max / 127.")
    return "\n\n".join([*parts, *_measured(about)]) + "\n"


def _measured(about: About) -> list[str]:
    """The metrics, their protocol and the command."""
    if about.record is None:
        return []
    rows = [
        f"| {name} | {_BETTER[each['higher_is_better']]} | {each['value']:.4g}"
        + (f" ± {each['stderr']:.2g}" if each.get("stderr") is not None else "")
        + f" | {each['n']} |"
        for name, each in _metrics(about).items()
    ]
    executed = about.record["cost"]["executed"]
    found = [
        f"## Metrics\n\nOf qdit's own execution ({executed}), whose codes the folder holds. Protocol:\n"
        f"`{about.record['protocol']}`",
        "| metric | better | value ± standard error | samples |\n|---|---|---|---|\n" + "\n".join(rows),
    ]
    if about.command is not None:
        found.append(f"The run, seed {about.record['seed']}, is that of\n\n```console\n$ {about.command}\n```")
    return found

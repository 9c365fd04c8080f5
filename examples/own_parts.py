"""A rule for ranges and a metric of one's own, from a file outside of qdit; a YAML gives them names (docs/how_to).

python examples/own_parts.py
"""

from dataclasses import dataclass

import torch

import qdit
from qdit.eval.base import Shown
from qdit.eval.per_sample import PairedMetric

N, STEPS = 64, 20


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """Ranges of weights that clip a share of each end: fewer outliers kept, finer steps for the others."""

    share: float = 0.1

    def __call__(self, rows, spec):
        """(lo, hi), both [rows, 1], of rows [rows, n]."""
        return rows.amin(-1, keepdim=True) * (1 - self.share), rows.amax(-1, keepdim=True) * (1 - self.share)


@dataclass(frozen=True, kw_only=True)
class Worst(PairedMetric):
    """The largest error of a pixel in each image, on a scale of 0 to 255."""

    higher_is_better = False
    shown = Shown(label="largest error", digits=1)

    def each(self, samples, full_precision):
        """One value for each image, [n]."""
        pairs = zip(samples.images(), full_precision.images(), strict=True)  # chunk by chunk, uint8 [b, 3, H, W]
        return torch.cat([(one.float() - other.float()).abs().flatten(1).amax(1) for one, other in pairs])


if __name__ == "__main__":
    own = ["weight.range._target_=own_parts.Shrunk", "+weight.range.share=0.2", "save_checkpoint=false"]
    for words in ([], own):
        record = qdit.run(
            *("quantizer=rtn", "bits=w4a8", "study=own_parts", f"num_samples={N}", f"sampler.steps={STEPS}"),
            *("eval=smoke", "+eval.worst._target_=own_parts.Worst", *words),
        )
        assert record is not None
        metrics = {name: f"{found['value']:.2f} ± {found['stderr']:.2f}" for name, found in record["metrics"].items()}
        print(record["config"]["weight.range._target_"], metrics)

"""What an evaluation costs beside its extractor: features of stored samples against the extractor alone.

    python experiments/benchmarks/evaluation.py [--samples 32] [--repeats 5]

`raw` gives the extractor batches of decoded pictures; `qdit` is `Drawn.features` of the same, which cuts them into
pieces, checks them, and gathers what comes out. Decoding is timed apart, by the embedded autoencoder. Both sides take
turns in one process, in seconds of the processor; the goal is that qdit has 95 % of the raw rate.
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import process_time

import torch
from tabulate import tabulate

import qdit
from qdit.eval.extractor import make_extractor
from qdit.eval.samples import Drawn

GOAL = 0.95


def seconds(call: Callable[[], object]) -> float:
    start = process_time()
    call()
    return process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32, help="pictures; clips are of eight frames")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    extractor = make_extractor("lite0")
    g = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (args.samples, 3, 32, 32), dtype=torch.uint8, generator=g)
    extractor(pictures[:2])  # loads it
    rows = []
    for name, samples in (("images", pictures), ("clips of 8 frames", pictures.unflatten(0, (-1, 8)))):
        times: dict[str, list[float]] = {"raw": [], "qdit": []}
        for _ in range(args.repeats):
            batches = pictures.split(8)  # as large as a piece
            times["raw"].append(seconds(lambda batches=batches: [extractor(batch) for batch in batches]))
            drawn = Drawn(list(samples.split(8 if samples.ndim == 4 else 1)), lambda x: x, lambda _: extractor)
            times["qdit"].append(seconds(lambda drawn=drawn: drawn.features("lite0")))
        raw, own = (args.samples / median(times[side]) for side in ("raw", "qdit"))
        rows.append([name, raw, own, own / raw, GOAL])
    print(tabulate(rows, ["samples", "raw (pictures/s)", "qdit (pictures/s)", "share", "goal"], floatfmt=".3g"))
    decoder = qdit.embedded().vae
    latents = torch.randn(args.samples, decoder.config.latent_channels, 8, 8, generator=g)
    with torch.inference_mode():
        decoder.decode(latents[:1])
        took = median(seconds(lambda: decoder.decode(latents)) for _ in range(args.repeats))
    print(f"decoding, by itself: {args.samples / took:.3g} pictures/s")


if __name__ == "__main__":
    main()

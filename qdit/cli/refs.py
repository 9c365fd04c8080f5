"""qdit-refs: reference statistics for FID and its kin, made once and kept.

    qdit-refs import VIRTUAL_imagenet256_labeled.npz --name imagenet256     ADM's file
    qdit-refs build photos/ --name photos --extractor lite0 --size 256      a folder or an npz of images
    qdit-refs build val2014/ --captions captions_val2014.json --n 5000 --name coco --size 256      and their prompts
    qdit-refs floor photos/ --name photos --extractor lite0 --size 256      what a perfect model would score

Results go to <cache-dir>/references, where runs look after the shipped files.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qdit.cli.entry import carried_out, device_of
from qdit.errors import UserError

if TYPE_CHECKING:
    from qdit.eval.extractor import FeatureExtractor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 2 after a mistake that the user can mend."""
    args = _parser().parse_args(arguments)
    return carried_out("qdit-refs", lambda: args.run(args))


def _parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser("qdit-refs", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--cache-dir", type=Path, default=Path("cache"), help="default: cache")
    common.add_argument("--weights", help="weight file of the extractor; default: the usual places")
    common.add_argument("--allow-download", action="store_true", help="fetch a missing weight file")
    common.add_argument("--device", default="cpu", help="default: cpu")
    common.add_argument("--out", type=Path, help="write here and not in the cache")
    commands = whole.add_subparsers(required=True, metavar="import|build|floor")

    adm = commands.add_parser("import", parents=[common], help="ADM's reference batch")
    adm.add_argument("source", type=Path, help="npz with mu and sigma (for FID), mu_s and sigma_s (for sFID)")
    adm.add_argument("--name", default="imagenet256", help="data set; default: imagenet256")
    adm.set_defaults(run=_import)

    images = argparse.ArgumentParser(add_help=False)
    images.add_argument("source", type=Path, help="folder of images, or npz with arr_0 or images")
    images.add_argument("--name", required=True, help="data set, as in the run's dataset.name")
    images.add_argument("--extractor", default="lite0", help="lite0 (default), inception, or clip_l14_336 for CMMD")
    images.add_argument("--size", type=int, help="side in px after ADM's centre crop; default: as they are")
    build = commands.add_parser("build", parents=[common, images], help="statistics of images")
    build.add_argument("--captions", type=Path, metavar="JSON", help="of COCO or MJHQ-30K: also write their prompts")
    build.add_argument("--n", type=int, help="with --captions: so many images, drawn; default: all")
    build.add_argument("--seed", type=int, default=0, help="of the draw; default: 0")
    build.set_defaults(run=_build)

    floor = commands.add_parser("floor", parents=[common, images], help="real images against the same reference")
    floor.add_argument("--n", type=int, nargs="+", default=[256, 1024, 2048], help="default: 256 1024 2048")
    floor.add_argument("--draws", type=int, default=5, help="default: 5")
    floor.add_argument("--seed", type=int, default=0, help="default: 0")
    floor.set_defaults(run=_floor)
    return whole


def _import(args: argparse.Namespace) -> None:
    from qdit.assets import cached
    from qdit.eval.extractor import make_extractor
    from qdit.eval.make_reference import import_adm
    from qdit.eval.reference import no_features

    extractor = make_extractor("inception", args.weights, args.allow_download)
    extractor.device = device_of(args.device)
    reference = import_adm(args.source, args.name, extractor)
    target = args.out or cached(args.name, "inception", args.cache_dir)
    reference.save(target)
    print(target)
    if reference.pooled is None:
        print(f"note: {no_features(reference)}", file=sys.stderr)


def _build(args: argparse.Namespace) -> None:
    from qdit.assets import cached
    from qdit.eval.captioned import choose, read_captioned, write_prompts
    from qdit.eval.image_files import Images
    from qdit.eval.make_reference import build

    if args.captions is None and args.n is not None:
        raise UserError("--n chooses among images with captions: give --captions, or a folder of those that you want")
    chosen = choose(read_captioned(args.source, args.captions), args.n, args.seed) if args.captions else None
    images = Images(args.source, args.size, [each.file for each in chosen] if chosen else None)
    extractor = _loaded(args)
    reference = build(images, args.name, extractor)
    target = args.out or cached(args.name, args.extractor, args.cache_dir)
    prompts = target.parent / f"{args.name}.jsonl"
    if chosen and args.captions:
        write_prompts(chosen, prompts)
        reference.provenance["prompts"] = f"{len(chosen)} of {args.captions.name}, seed {args.seed}"
    reference.save(target)
    print(target)
    if chosen:
        size = f" dataset.image_size={args.size}" if args.size else ""
        print(prompts)
        print(f"use them with: dataset.file={prompts} dataset.reference={args.name}{size} num_samples={len(chosen)}")


def _floor(args: argparse.Namespace) -> None:
    from qdit.eval.image_files import Images
    from qdit.eval.make_reference import floor
    from qdit.eval.reference import find
    from qdit.storage.atomic import write_json

    reference = find(args.name, args.extractor, args.cache_dir)
    report = floor(Images(args.source, args.size), reference, _loaded(args), args.n, args.draws, args.seed)
    for n, scores in report.items():
        shown = [
            f"{metric}·10³ {1000 * score['mean']:.3f} ± {1000 * score['std']:.3f}"
            if metric.startswith("kid")
            else f"{metric} {score['mean']:.3f} ± {score['std']:.3f}"
            for metric, score in scores.items()
        ]
        print(f"N={n}: " + ", ".join(shown))
    if args.out:
        about = {"reference": reference.name, "reference_digest": reference.digest, **reference.provenance}
        how = {"draws": args.draws, "seed": args.seed, "replacement": True, "images": args.source.name}
        write_json(args.out, {"provenance": about | how, "floor": report})
        print(args.out)


def _loaded(args: argparse.Namespace) -> "FeatureExtractor":
    from qdit.eval.extractor import make_extractor

    return make_extractor(args.extractor, args.weights, args.allow_download).loaded(device_of(args.device))


if __name__ == "__main__":
    sys.exit(main())

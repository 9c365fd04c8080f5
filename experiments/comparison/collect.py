"""Keep what tables, figures and notebooks read of a study: records, values of single samples and thumbnails.

    python experiments/comparison/collect.py [--runs-dir runs] [--study methods]
    python experiments/comparison/collect.py --add         # beside the runs that are there
    python experiments/comparison/collect.py --pictures S  # of the study S, for records that came without
    python experiments/comparison/collect.py --digests     # of what is there, after a change by hand

Copies the finished runs of the study into `results/<study>/` beside this file, in the layout of a runs folder, so that
`qdit-table --runs-dir experiments/comparison/results` reads them as it reads `runs`. Beside them stands `digests.json`,
with which `qdit-table` names a record that is not what was collected.

Pictures show the first samples alone, so that a run of 32 samples draws those of a record of 256. They are taken where
the quantized model is the record's (by the digest of its checkpoint), and so are the values of the samples.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from qdit.storage.atomic import write_json
from qdit.storage.digest import sha256
from qdit.storage.reading import read_json
from qdit.storage.run_folder import IMAGES, VALUES
from qdit.storage.seal import DIGEST, sealed
from qdit.tables import load_results
from qdit.tables.collected import DIGESTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--study", default="methods")
    parser.add_argument("--add", action="store_true", help="keep the other runs that are there, and full precision")
    parser.add_argument("--pictures", metavar="STUDY", help="add the pictures of this study to records without")
    parser.add_argument("--digests", action="store_true", help="only write the digests of what is there again")
    arguments = parser.parse_args()
    kept = Path(__file__).with_name("results") / arguments.study
    if arguments.pictures:
        add_pictures(load_results(arguments.runs_dir, arguments.pictures), load_results(kept.parent, kept.name))
    elif not arguments.digests:
        collect(arguments.runs_dir, arguments.study, kept, arguments.add)
    write_json(kept / DIGESTS, digests(kept))


def collect(runs_dir: str, study: str, kept: Path, add: bool) -> None:
    """Copy the finished runs of a study into `kept`, in the place of what is there, or beside it."""
    runs = load_results(runs_dir, study)
    if not add:
        shutil.rmtree(kept, ignore_errors=True)
    for folder in map(Path, runs[runs.status == "done"].folder):
        for file in ("result.json", VALUES, IMAGES):
            target = kept / folder.name / file
            stays = add and folder.name.startswith("fp-") and target.exists()
            if (folder / file).is_file() and not stays:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, target)
        without_places(kept / folder.name / "result.json")
    print(f"{(runs.status == 'done').sum()} runs, {(runs.status != 'done').sum()} left out: {kept}")


def add_pictures(made: pd.DataFrame, kept: pd.DataFrame) -> None:
    """Give kept records without pictures those of runs of the same quantized models, or say why not."""
    drawn = by_name(made)
    for name, folder in by_name(kept).items():
        if (folder / IMAGES).is_file() or name not in drawn:
            continue
        if same_samples(drawn[name], folder):
            shutil.copyfile(drawn[name] / IMAGES, folder / IMAGES)
        else:
            print(f"{folder.name}: left without pictures: {drawn[name].name} is another model, or has other samples")


def by_name(runs: pd.DataFrame) -> dict[tuple[str, str], Path]:
    """The folders of finished runs by what tells the runs of one study apart: name and calibration set."""
    done = runs[runs.status == "done"]
    names = zip(done["name"], done["calibration.seed"].astype(str), strict=True)
    return dict(zip(names, map(Path, done.folder), strict=True))


def same_samples(run: Path, record: Path) -> bool:
    """Whether two runs have the same quantized model, and their common samples the same SQNR (to .01 dB)."""
    saved = [read_json(each / "result.json", "make it again").get("checkpoint") or {} for each in (run, record)]
    if saved[0].get("digest") != saved[1].get("digest") or not saved[0]:  # full precision has none
        return False
    found, known = ({key.split("@")[0]: each for key, each in load_file(of / VALUES).items()} for of in (run, record))
    count = min(len(found["sqnr"]), len(known["sqnr"]))
    return bool(np.allclose(found["sqnr"][:count], known["sqnr"][:count], atol=0.01))


def without_places(file: Path) -> None:
    """Let a record say where runs and caches are by default, and not where they were on some machine."""
    record = read_json(file, "collect the runs again")
    config = record["config"] | {"runs_dir": "runs", "cache_dir": "cache"}
    if config != record["config"]:
        record["config"] = config
        write_json(file, sealed(record) if DIGEST in record else record)


def digests(kept: Path) -> dict[str, str]:
    """SHA-256 of every file of a study, by its path in it."""
    files = sorted(file for file in kept.glob("*/**/*") if file.is_file())
    return {file.relative_to(kept).as_posix(): sha256(file) for file in files}


if __name__ == "__main__":
    main()

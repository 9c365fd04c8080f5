"""Make `qdit/assets/emoji/emoji32.npz`, the embedded data set, from the npm package `emoji-datasource-google`.

    npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz
    python experiments/emoji_dit/build_data.py package

Every base emoji (1,911) is kept. Skin-tone variants (1,875) would make people half of the data, so they are drawn
at random only until their class holds `CLASS_CAP` images. A class is an emoji subcategory; class 99 is the null class
of classifier-free guidance and has no image.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32
CLASS_CAP = 48
SEED = 0


def load_image(path: Path) -> np.ndarray:
    """A 64x64 RGBA emoji on white, as uint8 [SIZE, SIZE, 3]."""
    art = Image.open(path).convert("RGBA")
    canvas = Image.new("RGBA", art.size, "white")
    canvas.alpha_composite(art)
    return np.asarray(canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def entries(emoji: list[dict]) -> list[tuple[str, str, str]]:
    """(file, subcategory, name) of every kept image, in the order of the source."""
    rng = np.random.default_rng(SEED)
    kept = [(e["image"], e["subcategory"], (e["name"] or e["short_name"]).lower()) for e in emoji]
    count = {c: sum(k[1] == c for k in kept) for c in {k[1] for k in kept}}
    tones = [
        (variant["image"], e["subcategory"], f"{(e['name'] or e['short_name']).lower()}, skin tone {tone}")
        for e in emoji
        for tone, variant in e.get("skin_variations", {}).items()
    ]
    for index in rng.permutation(len(tones)):
        subcategory = tones[index][1]
        if count[subcategory] < CLASS_CAP:
            count[subcategory] += 1
            kept.append(tones[index])
    return kept


def main() -> None:
    """Write the npz: images uint8 [N, 32, 32, 3], labels int16 [N], names, classes (no pickled objects)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked npm package")
    parser.add_argument("--out", type=Path, default=Path("qdit/assets/emoji/emoji32.npz"))
    args = parser.parse_args()
    emoji = sorted(json.loads((args.package / "emoji.json").read_text()), key=lambda e: e["sort_order"])
    folder = args.package / "img" / "google" / "64"
    kept = [k for k in entries(emoji) if (folder / k[0]).is_file()]
    classes = sorted({subcategory for _, subcategory, _ in kept})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        args.out,
        images=np.stack([load_image(folder / file) for file, _, _ in kept]),
        labels=np.array([classes.index(subcategory) for _, subcategory, _ in kept], np.int16),
        names=np.array([name for _, _, name in kept]),
        classes=np.array(classes),
    )
    sizes = np.bincount([classes.index(c) for _, c, _ in kept])
    print(f"{len(kept)} images, {len(classes)} classes of {sizes.min()} to {sizes.max()} -> {args.out}")


if __name__ == "__main__":
    main()

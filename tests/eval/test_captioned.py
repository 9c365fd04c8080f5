"""Images with captions in the layouts of COCO and of MJHQ-30K."""

import json

import pytest
from PIL import Image

from qdit.errors import UserError
from qdit.eval.captioned import choose, read_captioned, write_prompts


@pytest.fixture
def coco(tmp_path):
    """Three images, two captions of the first; the least id is not the first in the file."""
    folder = tmp_path / "val2014"
    folder.mkdir()
    for number in (9, 42, 73):
        Image.new("RGB", (4, 4)).save(folder / f"COCO_val2014_{number:012}.jpg")
    about = {
        "images": [{"id": number, "file_name": f"COCO_val2014_{number:012}.jpg"} for number in (73, 9, 42)],
        "annotations": [
            {"image_id": 9, "id": 700, "caption": "A later one."},
            {"image_id": 73, "id": 5, "caption": "A bench.\n"},
            {"image_id": 9, "id": 48, "caption": "A meal,  on a table."},
        ],
    }
    return folder, tmp_path / "captions_val2014.json", about


def read(folder, file, about):
    file.write_text(json.dumps(about))
    return read_captioned(folder, file)


def test_coco_has_the_caption_of_least_id_and_leaves_out_images_without(coco, tmp_path):
    found = read(*coco)
    names = ["COCO_val2014_000000000009", "COCO_val2014_000000000073"]
    assert [each.name for each in found] == names
    assert [each.caption for each in found] == ["A meal, on a table.", "A bench."]
    assert all(each.file.is_file() for each in found)
    write_prompts(found, tmp_path / "p.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert lines[0] == {"id": names[0], "prompt": "A meal, on a table."}


def test_mjhq_has_a_prompt_by_name_in_folders_of_categories(tmp_path):
    for category, name in (("art", "00aa"), ("food", "01bb")):
        (tmp_path / "i" / category).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "i" / category / f"{name}.jpg")
    about = {"01bb": {"category": "food", "prompt": "soup — hot"}, "00aa.jpg": {"category": "art", "prompt": "oil"}}
    found = read(tmp_path / "i", tmp_path / "meta_data.json", about)
    assert [(each.name, each.caption, each.file.parent.name) for each in found] == [
        *[("00aa", "oil", "art"), ("01bb", "soup — hot", "food")]
    ]


def test_a_choice_is_drawn_by_its_seed_and_keeps_the_order():
    images = list(range(100))
    one, again, other = (choose(images, 10, seed) for seed in (0, 0, 1))
    assert one == again == sorted(set(one)) != other
    assert choose(images, None, 0) is images
    for count in (1, 101):
        with pytest.raises(UserError, match="of 100 images with captions; give 2 to 100"):
            choose(images, count, 0)


def test_what_does_not_belong_together_is_named(coco, tmp_path):
    folder, file, about = coco
    lost = about | {"images": [*about["images"], {"id": 1, "file_name": "gone.jpg"}]}
    lost["annotations"] = [*about["annotations"], {"image_id": 1, "id": 1, "caption": "x"}]
    with pytest.raises(UserError, match="captions for 3 images, and 1 of them are not in .*such as gone"):
        read(folder, file, lost)
    with pytest.raises(UserError, match=r"is not COCO's: images have id and file_name.*KeyError\(77\)"):
        read(folder, file, about | {"annotations": [{"image_id": 77, "id": 1, "caption": "x"}]})
    with pytest.raises(UserError, match="has no text as the caption of COCO_val2014_000000000009"):
        read(folder, file, about | {"annotations": [{"image_id": 9, "id": 1, "caption": " "}]})
    with pytest.raises(UserError, match="is neither COCO's nor MJHQ's"):
        read(folder, file, {"images": []})
    with pytest.raises(UserError, match="has no captions"):
        read(folder, file, {})
    (folder / "again").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "again" / "COCO_val2014_000000000009.png")
    with pytest.raises(UserError, match="two images of one name"):
        read(folder, file, about)

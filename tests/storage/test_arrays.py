"""Arrays and images that others made: right values, or one sentence."""

import io
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from qdit.errors import UserError
from qdit.storage.arrays import array_names, read_arrays, read_image

GREY = np.tile(np.arange(256, dtype=np.uint8), (3, 1))


def image_file(folder, image, name="a.png", **how):
    image.save(folder / name, **how)
    return folder / name


def test_sixteen_bits_are_scaled(tmp_path):
    """The 8-bit copy of an image is that of its 16-bit copy, and what lies between is rounded."""
    sixteen = image_file(tmp_path, Image.fromarray(GREY.astype(np.uint16) * 257))
    expected = np.repeat(GREY[..., None], 3, -1)
    assert (read_image(sixteen, "") == expected).all()
    image_file(tmp_path, Image.fromarray(np.array([[0, 128, 129, 385, 386, 65535]], np.uint16)))
    assert read_image(sixteen, "")[0, :, 0].tolist() == [0, 0, 1, 1, 2, 255]


def opaque():
    return Image.merge("RGBA", [*Image.fromarray(np.stack([GREY] * 3, -1)).split(), Image.new("L", (256, 3), 255)])


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        Image.fromarray(GREY).convert("RGB"),
        Image.fromarray(GREY).convert("P", palette=Image.Palette.ADAPTIVE, colors=256),
        Image.fromarray(GREY).convert("LA"),
        opaque(),
    ],
    ids=lambda image: image.mode,
)
def test_modes_with_a_true_copy_are_converted(image, tmp_path):
    assert (read_image(image_file(tmp_path, image), "") == np.repeat(GREY[..., None], 3, -1)).all()


def test_cmyk_and_one_bit(tmp_path):
    cmyk = Image.new("CMYK", (8, 8), (0, 0, 0, 255))
    assert read_image(image_file(tmp_path, cmyk, "a.jpg"), "").max() < 10
    assert read_image(image_file(tmp_path, Image.new("1", (2, 2), 1)), "").min() == 255


def harmed(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 16
    return bytes(changed)


def png(image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()


def tiff(array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "tiff")
    return stream.getvalue()


def animated() -> bytes:
    stream, frames = io.BytesIO(), [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(stream, "png", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def bomb() -> bytes:
    """A header that claims 2³¹ - 1 pixels on each side."""
    data = bytearray(png(Image.new("L", (1, 1))))
    data[16:24] = b"\x7f\xff\xff\xff" * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "its format is none"),
        (b"no image", "its format is none"),
        (png(NOISE)[:-40], "Truncated|truncated"),
        (harmed(png(NOISE), 300), "checksum|CRC|broken"),
        (png(Image.new("RGBA", (2, 2), (9, 9, 9, 128))), "transparent"),
        (png(Image.new("LA", (2, 2), (9, 0))), "transparent"),
        (tiff(np.zeros((2, 2), np.float32)), "mode F"),
        (tiff(np.zeros((2, 2), np.int32)), "mode I"),
        (animated(), "has 2 frames"),
        (bomb(), "pixels"),
        (b"P6 0 0 255\n", ""),
    ],
    ids=range(11),
)
def test_images_without_a_true_copy_are_refused(data, found, tmp_path):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UserError, match=rf"a\.png cannot be read as an image: .*({found}).*; mend it$"):
        read_image(tmp_path / "a.png", "mend it")


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def npz(path, **members: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,)}", "claims 80,000,000,000,000 bytes"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", r"claims the shape"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "allow_pickle"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (" + "1," * 500 + ")}", "cannot be read"),
        ("{" * 20_000, "cannot be read"),
        ("[1]", "cannot be read"),
    ],
)
def test_arrays_that_claim_what_they_do_not_hold_are_refused(header, found, tmp_path):
    npz(tmp_path / "a.npz", a=npy(header, bytes(8)))
    with pytest.raises(UserError, match=r"a.npz cannot be read as npz: .*; copy it again$") as caught:
        read_arrays(tmp_path / "a.npz", ["a"], "copy it again")
    assert found.replace("\\", "") in str(caught.value)


def test_what_is_no_npz_or_damaged_is_refused(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, a=np.arange(100.0), text="b")
    assert array_names(file, "") == ["a", "text"]
    assert (read_arrays(file, ["a"], "")[0] == np.arange(100.0)).all()
    whole = file.read_bytes()
    for data in (b"", b"text", whole[:-30], whole[:300], harmed(whole, 400)):
        file.write_bytes(data)
        with pytest.raises(UserError, match="cannot be read as npz"):
            read_arrays(file, ["a"], "copy it again")
    file.write_bytes(whole)
    with pytest.raises(UserError, match="cannot be read as npz"):
        read_arrays(file, ["b"], "copy it again")
    np.save(tmp_path / "b.npy", np.zeros(2))
    (tmp_path / "b.npy").rename(file)
    with pytest.raises(UserError, match="no zip archive"):
        array_names(file, "copy it again")

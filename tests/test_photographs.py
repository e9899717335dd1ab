"""Photographs: as people see them for the models, as their files have them for the pairs."""

import logging
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from anomaly.files import photographs
from anomaly.files.photographs import Photograph, open_photograph, read_photograph, size_of

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 17), dtype=np.uint8)
RGB = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (12, 17), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (12, 17), dtype=np.uint16)
DEEP[0, 0] = 65535


def save(path, picture, **options):
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(path, **options)
    return path


def png16(channels, values):
    """A PNG of 16 bits a channel, which Pillow cannot write: RGB 2, grey with alpha 4, RGBA 6."""
    def chunk(kind, content):
        return (struct.pack(">I", len(content)) + kind + content
                + struct.pack(">I", zlib.crc32(kind + content)))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, channels, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("values", [
    GREY, np.dstack([GREY, ALPHA]), RGB, np.dstack([RGB, ALPHA]), DEEP], ids=range(5))
def test_mode_and_depth_are_kept_and_the_models_see_colours_of_8_bits(tmp_path, values, ending):
    photograph = open_photograph(save(tmp_path / f"a.{ending}", values))
    assert photograph.values.dtype == values.dtype and np.array_equal(photograph.values, values)
    colours = {(): values, (2,): values[..., 0]}.get(values.shape[2:], values[..., :3])
    assert np.array_equal(photograph.colours, colours)
    if values is DEEP:
        colours = np.round(DEEP / 257).astype(np.uint8)
    assert np.array_equal(photograph.seen, colours)
    assert np.array_equal(read_photograph(tmp_path / f"a.{ending}"), colours)


def test_16_bits_of_either_byte_order_are_the_same_values(tmp_path):
    for order in "<>":
        path = save(tmp_path / "a.tif", DEEP.astype(f"{order}u2"))
        assert path.read_bytes()[:2] == {"<": b"II", ">": b"MM"}[order]
        assert np.array_equal(open_photograph(path).values, DEEP)
    (tmp_path / "a.pgm").write_bytes(b"P5 17 12 65535\n" + DEEP.astype(">u2").tobytes())
    assert np.array_equal(open_photograph(tmp_path / "a.pgm").values, DEEP)


@pytest.mark.parametrize("largest, white", [
    (65535, 65535), (16383, 16383), (9000, 16383), (4095, 4095), (1023, 1023), (900, 1023),
    (255, 255)])
def test_white_is_the_depth_that_holds_the_folders_largest_value(tmp_path, largest, white, caplog):
    dark, light = np.full((8, 9), largest // 2, np.uint16), np.zeros((8, 9), np.uint16)
    light[3, 3] = largest
    save(tmp_path / "light.png", light)
    save(tmp_path / "0.png", GREY)      # of 8 bits: it says nothing
    (tmp_path / "z.png").write_bytes(b"damaged")
    save(tmp_path / "light_mask.png", np.full((8, 9), 65535, np.uint16))    # no photograph
    with caplog.at_level(logging.INFO, "anomaly"):
        photograph = open_photograph(save(tmp_path / "dark.png", dark))
    assert photograph.white == white and np.array_equal(photograph.values, dark)
    assert abs(int(photograph.seen[0, 0]) - 255 * (largest // 2) / white) <= 0.5
    assert (f"white is {white}" in caplog.text) == (white < 65535)


CONVERTED = {
    "palette": (lambda: Image.fromarray(RGB).quantize(40), "RGB", "a palette is written as RGB"),
    "CMYK": (lambda: Image.fromarray(RGB).convert("CMYK"), "RGB", "CMYK is written as RGB"),
    "one bit": (lambda: Image.fromarray(GREY > 99), "L", "one bit is written as L"),
    "YCbCr": (lambda: Image.fromarray(RGB).convert("YCbCr"), "RGB", "YCbCr is written as RGB")}


@pytest.mark.parametrize("name", CONVERTED)
def test_what_cannot_be_kept_is_written_as_rgb_and_said_once(tmp_path, caplog, name):
    draw, mode, said = CONVERTED[name]
    image = draw()
    with caplog.at_level(logging.INFO, "anomaly"):
        for i in range(2):
            photograph = open_photograph(save(tmp_path / f"{i}.tif", image))
    assert np.array_equal(photograph.values, np.asarray(image.convert(mode)))
    assert caplog.text.count(said) == 1 and "as of 0.tif" in caplog.text


@pytest.mark.parametrize("channels, kind", [(2, (3,)), (4, (4,)), (6, (4,))])
def test_16_bits_a_colour_are_read_as_8_and_said(tmp_path, caplog, channels, kind):
    count = {2: 3, 4: 2, 6: 4}[channels]
    values = RNG.integers(0, 65536, (12, 17, count))
    (tmp_path / "a.png").write_bytes(png16(channels, values))
    with caplog.at_level(logging.INFO, "anomaly"):
        photograph = open_photograph(tmp_path / "a.png")
    assert photograph.values.shape[2:] == kind
    assert np.array_equal(photograph.values[..., -1], (values[..., -1] // 256).astype(np.uint8))
    assert "16 bits a colour are read as 8" in caplog.text


def test_a_transparent_colour_becomes_alpha(tmp_path):
    image = Image.fromarray(GREY)
    photograph = open_photograph(save(tmp_path / "a.png", image, transparency=int(GREY[0, 0])))
    assert np.array_equal(photograph.values[..., 0], GREY)
    assert np.array_equal(photograph.values[..., 1] == 0, GREY == GREY[0, 0])
    indexed = Image.fromarray(RGB).quantize(4)
    photograph = open_photograph(save(tmp_path / "p.png", indexed, transparency=0))
    assert np.array_equal(photograph.values[..., 3] == 0, np.asarray(indexed) == 0)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("values", [GREY, DEEP], ids=["8", "16"])
def test_photographs_are_turned_as_exif_says_and_measured_so(tmp_path, caplog, ending, values, tag):
    if ending == "jpg" and values is DEEP:
        pytest.skip("JPEG has 8 bits")
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"tiffinfo": {0x0112: tag}} if ending == "tif" else {"exif": exif}
    path = save(tmp_path / f"a.{ending}", values, **options)
    upright = {1: lambda a: a, 2: np.fliplr, 3: lambda a: a[::-1, ::-1], 4: np.flipud,
               5: np.transpose, 6: lambda a: np.rot90(a, -1),
               7: lambda a: a[::-1, ::-1].T, 8: np.rot90}[tag]     # EXIF 2.3, tag Orientation
    with caplog.at_level(logging.INFO, "anomaly"):
        found = open_photograph(path).values
    stored = np.asarray(Image.open(path)) if ending == "jpg" else values
    assert np.array_equal(found, upright(stored)) and size_of(path) == found.shape
    assert ("turned as the EXIF tag says" in caplog.text) == (tag > 1)


def test_of_several_pages_the_first_is_used_and_that_is_said(tmp_path, caplog):
    pages = [Image.fromarray(np.full((8, 9), 50 * i, np.uint8)) for i in range(3)]
    with caplog.at_level(logging.INFO, "anomaly"):
        for name in ("a.tif", "a.gif", "a.webp"):
            path = save(tmp_path / name, pages[0], save_all=True, append_images=pages[1:])
            assert open_photograph(path).seen.max() == 0
            assert f"{name}: page 1 of 3 is used" in caplog.text


def test_a_damaged_exif_block_or_a_warning_does_not_stop_a_photograph(tmp_path):
    path = save(tmp_path / "a.jpg", GREY, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    indexed = Image.fromarray(RGB).quantize(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_photograph(path).values.shape == GREY.shape
        transparent = save(tmp_path / "a.png", indexed, transparency=bytes([0, 9, 255, 255]))
        assert open_photograph(transparent).values.shape[2] == 4


def test_a_line_scan_above_pillows_limit_is_read_and_one_above_ours_is_refused(
        tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)      # GREY is above twice of it
    path = save(tmp_path / "a.png", GREY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(open_photograph(path).values, GREY)
    assert Image.MAX_IMAGE_PIXELS == 30
    monkeypatch.setattr(photographs, "MEGAPIXELS", 0.0001)
    with pytest.raises(ValueError, match="17x12 pixels are more than .* megapixels.; cut it into"):
        size_of(path)


def test_no_memory_and_a_failing_disk_are_not_the_pictures_fault(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", GREY)
    for error in (MemoryError(), OSError(5, "Input/output error")):
        def fails(*args, error=error, **options):
            raise error
        monkeypatch.setattr(Image, "open", fails)
        with pytest.raises(type(error), match="" if isinstance(error, MemoryError) else "Input"):
            open_photograph(path)


def test_values_above_white_are_white():
    assert Photograph(np.array([[0, 512, 4000]], np.uint16), 1023).seen.tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("name, content, words", [
    ("a.png", b"", "0 bytes"), ("a.png", b"text", "cannot be read as a photograph"),
    ("a.jpg", b"\0\0\0\x18ftypheic" + bytes(50), "HEIC under another name.; convert it to PNG"),
    ("a.tif", np.zeros((4, 4), np.float32), "floating-point pixels; expected 8 or 16 bits"),
    ("a.tif", np.full((4, 4), 70000, np.int32), "32-bit values from 70000 to 70000")])
def test_what_is_no_photograph_is_one_line(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else save(path, content)
    with pytest.raises(ValueError, match=words) as err:
        open_photograph(path)
    assert str(err.value).startswith(str(path)) and "\n" not in str(err.value)


def test_a_png_with_a_wrong_byte_is_refused(tmp_path):
    """Pillow decodes it to look for EXIF, and is quiet about it when it is asked again."""
    path = save(tmp_path / "a.png", RNG.integers(0, 256, (50, 60), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[1500] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a.png: cannot be read as a photograph"):
        open_photograph(path)

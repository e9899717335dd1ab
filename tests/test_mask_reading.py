"""What a mask's file means: every row of the table in mask_reading.py, and its neighbours."""

import logging

import numpy as np
import pytest
from PIL import Image, ImageFilter

from anomaly.files.mask_reading import read_mask

BLOB = np.zeros((60, 80), bool)
BLOB[20:45, 30:62] = True
PART = np.zeros((60, 80), bool)     # a second part of the defect, apart from the first
PART[4:14, 5:20] = True
NOISE = np.random.default_rng(1).integers(0, 16, (60, 80), dtype=np.uint8)
PHOTOGRAPH = np.random.default_rng(0).normal(120, 40, (60, 80)).clip(0, 255).astype(np.uint8)


def levels(low, high, kind=np.uint8, part=None):
    """Two values, and a third on PART."""
    values = np.where(BLOB, high, low).astype(kind)
    if part is not None:
        values[PART] = part
    return values


def palette(*colours, transparent=None, values=None):
    """Index 0 outside the blob, 1 in it, 2 on the part if there is a third colour."""
    if values is None:
        values = levels(0, 1, part=2 if len(colours) > 2 else None)
    image = Image.frombytes("P", BLOB.shape[::-1], values.astype(np.uint8).tobytes())
    image.putpalette([channel for colour in colours for channel in colour])
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def colours(background, blob, part=None, alpha=None):
    """An RGB picture, or RGBA with alpha (h, w)."""
    picture = np.empty((*BLOB.shape, 3), np.uint8)
    picture[:], picture[BLOB] = background, blob
    if part is not None:
        picture[PART] = part
    return picture if alpha is None else np.dstack([picture, alpha.astype(np.uint8)])


def soft(image, radius=1.5):
    return Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))


OPAQUE = BLOB * 255
TWO = {     # name -> what is saved; BLOB is the defect
    "1 bit": Image.fromarray(BLOB), "0/255": levels(0, 255), "0/1": levels(0, 1),
    "0/100": levels(0, 100), "128/255": levels(128, 255), "1/2": levels(1, 2),
    "16 bits": levels(0, 65535, np.uint16), "16 bits, 0/1": levels(0, 1, np.uint16),
    "16 bits, 0/300": levels(0, 300, np.uint16),
    "LA": np.dstack([levels(0, 255), levels(255, 255)]),
    "LA, shape in alpha": np.dstack([levels(255, 255), levels(0, 255)]),
    "RGB": colours(0, 255), "RGB, grey 7": colours(0, 7), "RGB, red": colours(0, (255, 0, 0)),
    "RGB, dark blue": colours(0, (0, 0, 60)), "RGB, red on white": colours(255, (255, 0, 0)),
    "RGB, red on grey": colours(90, (200, 30, 30)),
    "RGB, two colours": colours((0, 0, 90), (90, 250, 90)),
    "RGBA, opaque": colours(0, 255, alpha=np.full(BLOB.shape, 255)),
    "RGBA, alpha nowhere": colours(0, 255, alpha=np.zeros(BLOB.shape)),
    "RGBA, white layer": colours(255, 255, alpha=OPAQUE),
    "RGBA, black layer": colours(0, 0, alpha=OPAQUE),
    "RGBA, red, hidden black": colours(0, (255, 0, 0), alpha=OPAQUE),
    "RGBA, black, hidden white": colours(255, 0, alpha=OPAQUE),
    "RGBA, both shapes": colours(0, 255, alpha=OPAQUE),
    "RGBA, half opaque": colours(255, 255, alpha=BLOB * 120),
    "P, white second": palette((0, 0, 0), (255, 255, 255)),
    "P, white first": palette((255, 255, 255), (0, 0, 0), values=~BLOB * 1),
    "P, black first, inverted numbers": palette((255, 0, 0), (0, 0, 0), values=~BLOB * 1),
    "P, nearly black": palette((0, 0, 0), (1, 1, 1)),
    "P, VOC": palette((0, 0, 0), (128, 0, 0)),
    "P, transparent background": palette((9, 9, 9), (200, 0, 0), transparent=0),
    "P, one colour, transparent": palette((255, 255, 255), (255, 255, 255), transparent=0)}


def save(path, picture, **options):
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_two_values_mean_the_lighter_or_the_coloured_or_the_opaque(tmp_path, name, ending):
    picture = TWO[name]
    if ending == "tif" and isinstance(picture, Image.Image) and "transparency" in picture.info:
        pytest.skip("TIFF has no transparent palette")
    assert np.array_equal(read_mask(save(tmp_path / f"m.{ending}", picture)), BLOB)


@pytest.mark.parametrize("picture", [
    levels(0, 1, part=2), levels(0, 2, part=1), levels(1, 3, part=2), levels(0, 31, np.uint16, 4),
    levels(0, 200, part=90), levels(0, 255, part=128), levels(0, 255, part=40),
    levels(0, 60000, np.uint16, 20000), colours(0, (250, 50, 83), (51, 221, 255)),
    colours(0, (255, 0, 0), (3, 0, 0)), colours(255, (255, 0, 0), (0, 255, 0)),
    palette((0, 0, 0), (128, 0, 0), (0, 128, 0)),
    palette((0, 0, 0), (255, 255, 255), (90, 90, 90)),
    colours(0, (255, 0, 0), (0, 255, 0), alpha=(BLOB | PART) * 255)])
def test_several_numbers_or_colours_are_all_the_defect(tmp_path, picture, caplog):
    with caplog.at_level(logging.INFO, "anomaly"):
        assert np.array_equal(read_mask(save(tmp_path / "m.png", picture)), BLOB | PART)


@pytest.mark.parametrize("grey", [1.0, 100 / 255, 40 / 255])
@pytest.mark.parametrize("quality", [5, 30, 75, 100])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpegs_ringing_is_cut(tmp_path, quality, grey, mode):
    picture = Image.fromarray((OPAQUE * grey).astype(np.uint8)).convert(mode)
    path = save(tmp_path / "m.jpg", picture, quality=quality)
    values = np.asarray(Image.open(path).convert("L"))
    best = min(((values > cut) != BLOB).sum() for cut in range(255))
    assert (read_mask(path) != BLOB).sum() <= best + 0.03 * BLOB.sum()


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 80, 200)])
@pytest.mark.parametrize("background", [0, 255])
def test_a_coloured_jpeg_is_cut_half_way_from_its_background(tmp_path, background, colour):
    picture = colours(background, colour)
    mask = read_mask(save(tmp_path / "m.jpg", picture, quality=60, subsampling=0))
    assert (mask != BLOB).sum() <= 0.08 * BLOB.sum()


@pytest.mark.parametrize("ending, options", [
    ("png", {}), ("webp", {"quality": 80}), ("jp2", {}), ("gif", {}), ("bmp", {})])
def test_soft_edges_are_cut_at_half(tmp_path, ending, options):
    for picture in (levels(0, 255), levels(0, 120), colours(0, (250, 10, 10))):
        mask = read_mask(save(tmp_path / f"m.{ending}", soft(picture), **options))
        assert (mask != BLOB).sum() <= 0.04 * BLOB.sum()
    alpha = np.asarray(soft(OPAQUE.astype(np.uint8)))
    if ending == "png":
        mask = read_mask(save(tmp_path / "a.png", colours(255, 255, alpha=alpha)))
        assert (mask != BLOB).sum() <= 0.04 * BLOB.sum()


@pytest.mark.parametrize("dark, light, kind", [
    (85, 255, np.uint8), (100, 255, np.uint8), (40, 80, np.uint8), (1000, 3000, np.uint16)])
def test_a_thin_part_of_its_own_grey_is_kept(tmp_path, dark, light, kind):
    values = levels(0, light, kind)
    values[5:7, 10:70] = dark
    assert np.array_equal(read_mask(save(tmp_path / "m.png", values)), values > 0)


def test_thin_lines_beside_a_lighter_part_are_its_soft_edge(tmp_path):
    """The greys of an edge have lighter pixels beside them: they are no part of their own."""
    values = levels(0, 255)
    values[19, 30:62] = values[45, 30:62] = 100
    assert np.array_equal(read_mask(save(tmp_path / "m.png", values)), BLOB)


@pytest.mark.parametrize("picture, words", [
    (levels(0, 1, part=255), "its values are 0, 1, 255: is 255 void or the defect"),
    (levels(0, 20, part=255), "its values are 0, 20, 255"),
    (levels(0, 3, np.uint16, 65535), "its values are 0, 3, 65535"),
    (palette(*[(0, 0, 0)] * 3, *[(128, 0, 0)] * 252, (224, 224, 192),
             values=levels(0, 2, part=255)), "its values are 0, 2, 255"),
    (colours(0, 255, part=(40, 40, 40), alpha=PART * 255 + BLOB * 255) * np.uint8(1), None),
    (colours(0, 255, alpha=(BLOB | PART) * 255), "by its colours, .* by its alpha"),
    (np.zeros((60, 80), np.uint8), "no defect in it, every pixel is background"),
    (colours(0, 0), "no defect in it"),
    (PHOTOGRAPH, "the commonest on 1% of the pixels, .*: a photograph"),
    (np.dstack([PHOTOGRAPH, PHOTOGRAPH // 2, 255 - PHOTOGRAPH]), "a photograph"),
    (np.where(BLOB, 20, 200).astype(np.uint8) + NOISE, "a photograph"),     # on an even ground
    (np.where(PART, 90 + NOISE, 255).astype(np.uint8), "9.% of them above"),        # on white
    (np.where(BLOB, np.nan, 0).astype(np.float32), "not finite")])
def test_what_contradicts_itself_is_refused_with_its_values(tmp_path, picture, words):
    path = save(tmp_path / ("m.tif" if getattr(picture, "dtype", 0) == np.float32 else "m.png"),
                picture)
    if words is None:       # colours and alpha agree
        assert np.array_equal(read_mask(path), BLOB | PART)
        return
    with pytest.raises(ValueError, match=words) as err:
        read_mask(path)
    assert str(err.value).startswith(str(path)) and "\n" not in str(err.value)


@pytest.mark.parametrize("value, said", [(255, "100 %"), (1, "100 %"), (None, "95 %")])
def test_what_is_full_or_nearly_so_gets_a_remark(tmp_path, caplog, value, said):
    values = np.full((60, 80), 255 if value is None else value, np.uint8)
    if value is None:
        values[:2] = 0
        values[:, :1] = 0
    with caplog.at_level(logging.INFO, "anomaly"):
        mask = read_mask(save(tmp_path / "m.png", values))
    assert mask.mean() > 0.9 and f"{said} of the photograph is marked" in caplog.text


def test_lossless_webp_and_a_transparent_255_hold_numbers(tmp_path):
    values = levels(0, 2, part=1)
    path = save(tmp_path / "m.webp", Image.fromarray(values).convert("RGB"), lossless=True)
    assert np.array_equal(read_mask(path), BLOB | PART)
    gif = palette(*[(0, 0, 0)] + [(200, 0, 0)] * 255, values=levels(255, 2, part=1))
    path = save(tmp_path / "m.png", gif, transparency=255)
    assert np.array_equal(read_mask(path), BLOB | PART)


def test_one_pixel_is_a_defect_and_needs_no_remark(tmp_path, caplog):
    values = np.zeros((60, 80), np.uint8)
    values[7, 9] = 255
    with caplog.at_level(logging.INFO, "anomaly"):
        assert np.argwhere(read_mask(save(tmp_path / "m.png", values))).tolist() == [[7, 9]]
    assert caplog.text == ""


def test_a_mask_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    for tag, turned in ((6, np.rot90(BLOB, -1)), (3, BLOB[::-1, ::-1]), (5, BLOB.T)):
        exif[0x0112] = tag
        path = save(tmp_path / "m.png", levels(0, 255), exif=exif)
        assert np.array_equal(read_mask(path), turned)

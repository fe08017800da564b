"""open_radiograph: every kind of file a user may bring, good and bad."""
import io
import json
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import write_dicom
from PIL import Image, ImageDraw
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000, JPEGBaseline8Bit, RLELossless)

from xraycap.dicom import MAX_FIELDS, bulk, display_values, greys, is_dicom, read_header, to_grey
from xraycap.files import assets
from xraycap.radiographs import check_shown, open_guarded, open_radiograph, square

REAL = Path(__file__).parents[2] / "shared" / "data" / "openi"
RAMP = np.tile(np.arange(256, dtype=np.uint8), (64, 1))  # (64,256), every level of grey once a row


def opened(path): return np.asarray(open_radiograph(path))


def save(path, image, **kw):
    image.save(path, **kw)
    return path


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    "A PNG that is only a header and a few bytes, written by hand"
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b""))


# --- what opens

@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_png_modes_give_the_same_grey(tmp_path, mode):
    path = save(tmp_path / "x.png", Image.fromarray(RAMP).convert(mode))
    assert open_radiograph(path).mode == "L"
    assert np.abs(opened(path).astype(int) - RAMP).max() <= 1


def test_one_bit(tmp_path):
    path = save(tmp_path / "x.png", Image.fromarray(RAMP > 127))
    assert (opened(path) == np.where(RAMP > 127, 255, 0)).all()


def test_jpeg_grey_and_colour_and_turned(tmp_path):
    grey = save(tmp_path / "grey.jpg", Image.fromarray(RAMP), quality=95)
    colour = save(tmp_path / "colour.jpg", Image.fromarray(RAMP).convert("RGB"), quality=95)
    assert np.abs(opened(grey).astype(int) - RAMP).mean() < 2
    assert np.abs(opened(colour).astype(int) - RAMP).mean() < 2
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    assert opened(save(tmp_path / "turned.jpg", Image.fromarray(RAMP), exif=exif)).shape == (256, 64)


@pytest.mark.parametrize("low,high", [(0, 65535), (0, 4095), (1000, 1510)])
def test_16_bits_use_their_own_range(tmp_path, low, high):
    x = np.linspace(low, high, 256).round().astype(np.uint16)
    path = save(tmp_path / "x.png", Image.fromarray(np.tile(x, (64, 1))))
    assert np.abs(opened(path).astype(int) - RAMP).max() <= 1


def test_flat_16_bit_picture_does_not_divide_by_zero(tmp_path):
    turned_away(save(tmp_path / "x.png", Image.fromarray(np.full((64, 64), 300, np.uint16))), "shows nothing")


def test_transparent_pixels_are_black(tmp_path):
    rgba = np.full((64, 64, 4), 200, np.uint8)
    rgba[..., 3] = 255
    rgba[:, :32, 3] = 0
    x = opened(save(tmp_path / "x.png", Image.fromarray(rgba)))
    assert (x[:, :32] == 0).all() and (x[:, 32:] == 200).all()


def test_transparent_palette_colour_is_black(tmp_path):
    image = Image.fromarray(np.repeat([[0] * 32 + [1] * 32], 64, 0).astype(np.uint8))
    image = image.convert("P")
    image.putpalette([250, 250, 250, 100, 100, 100])
    x = opened(save(tmp_path / "x.png", image, transparency=0))
    assert (x[:, :32] == 0).all() and (x[:, 32:] == 100).all()


def test_content_decides_not_the_name(tmp_path):
    jpeg = save(tmp_path / "really_jpeg.png", Image.fromarray(RAMP), format="JPEG")
    assert opened(jpeg).shape == RAMP.shape
    dicom = write_dicom(tmp_path / "really_dicom.jpg", RAMP.astype(np.uint16))
    assert opened(dicom).shape == RAMP.shape
    assert opened(str(jpeg)).shape == RAMP.shape  # a str does as well as a Path


@pytest.mark.parametrize("shape", [(32, 32), (33, 500), (2500, 2048)])
def test_any_size_becomes_a_square(tmp_path, shape):
    path = save(tmp_path / "x.png", Image.linear_gradient("L").resize(shape[::-1]))
    assert open_radiograph(path).size == shape[::-1]
    x = square(open_radiograph(path))
    assert x.shape == (224, 224) and x.dtype == np.uint8 and np.ptp(x[:, 100]) > 200 and np.ptp(x[100]) == 0
    assert square(open_radiograph(path), 64).shape == (64, 64)


def test_square_averages_and_crops_nothing():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (896, 448)))  # (896,896), one pixel each
    inner = square(stripes)[:, 4:-4]
    assert np.abs(inner.astype(int) - 127).max() <= 2
    framed = np.zeros((400, 800), np.uint8)
    framed[:20], framed[-20:], framed[:, :20], framed[:, -20:] = 255, 255, 255, 255
    x = square(Image.fromarray(framed))
    assert (x[[0, -1]] == 255).all() and (x[:, [0, -1]] == 255).all()


# --- DICOM

def test_dicom_monochrome1_is_inverted(tmp_path):
    x = np.tile(np.linspace(0, 4095, 256).astype(np.uint16), (64, 1))
    bright = opened(write_dicom(tmp_path / "a.dcm", x, PhotometricInterpretation="MONOCHROME2"))
    dark = opened(write_dicom(tmp_path / "b.dcm", x, PhotometricInterpretation="MONOCHROME1"))
    assert np.abs(bright.astype(int) - RAMP).max() <= 1
    assert np.abs(dark.astype(int) - RAMP[:, ::-1]).max() <= 1


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_window(tmp_path, photometric):
    x = np.tile(np.arange(4096, dtype=np.uint16), (64, 1))
    fields = dict(WindowCenter=2000, WindowWidth=1000, PhotometricInterpretation=photometric)
    got = opened(write_dicom(tmp_path / "x.dcm", x, **fields))
    # the formula of the standard (PS3.3 C.11.2.1.2.1), written out
    want = np.clip((np.arange(4096) - (2000 - .5)) / (1000 - 1) + .5, 0, 1) * 255
    if photometric == "MONOCHROME1": want = 255 - want
    assert np.abs(got[0] - want).max() <= 1


def test_dicom_rescale_comes_before_the_window(tmp_path):
    x = np.tile(np.arange(1024, dtype=np.uint16), (64, 1))
    fields = dict(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=0, WindowWidth=401)
    got = opened(write_dicom(tmp_path / "x.dcm", x, **fields))
    want = np.clip((np.arange(1024) * 2 - 1000 + .5) / 400 + .5, 0, 1) * 255
    assert np.abs(got[0] - want).max() <= 1


def test_dicom_window_wider_than_the_data_is_kept(tmp_path):
    x = np.tile(np.linspace(1000, 2000, 256).astype(np.uint16), (64, 1))
    got = opened(write_dicom(tmp_path / "x.dcm", x, WindowCenter=2000, WindowWidth=4000))
    assert abs(int(got.min()) - 64) <= 1 and abs(int(got.max()) - 128) <= 1


def test_dicom_tables_that_say_sixteen_bits_use_what_they_have(tmp_path):
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [256, 0, 16], (np.arange(256) * 16).astype("u2").tobytes()
    assert (opened(write_dicom(tmp_path / "x.dcm", RAMP, VOILUTSequence=[lut])) == RAMP).all()


def test_dicom_several_windows_use_the_first(tmp_path):
    x = np.tile(np.arange(4096, dtype=np.uint16), (64, 1))
    one = opened(write_dicom(tmp_path / "a.dcm", x, WindowCenter=2000, WindowWidth=1000))
    many = opened(write_dicom(tmp_path / "b.dcm", x, WindowCenter=[2000, 50], WindowWidth=[1000, 20]))
    assert (one == many).all()


def test_dicom_window_of_no_width_is_none(tmp_path):
    assert (opened(write_dicom(tmp_path / "x.dcm", RAMP, WindowCenter=50, WindowWidth=0)) == RAMP).all()


def test_dicom_eight_bits(tmp_path):
    assert (opened(write_dicom(tmp_path / "x.dcm", RAMP)) == RAMP).all()


def test_dicom_colour(tmp_path):
    rgb = np.repeat(RAMP[..., None], 3, 2)
    fields = dict(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    path = write_dicom(tmp_path / "x.dcm", rgb, **fields)
    assert (opened(path) == RAMP).all()


def test_dicom_palette(tmp_path):
    "A palette that turns grey upside down"
    tables = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    down = (np.arange(255, -1, -1) * 257).astype("u2").tobytes()
    fields = {f"{name}Descriptor": [256, 0, 16] for name in tables} | {f"{name}Data": down for name in tables}
    path = write_dicom(tmp_path / "x.dcm", RAMP, PhotometricInterpretation="PALETTE COLOR", **fields)
    assert np.abs(opened(path).astype(int) - (255 - RAMP)).max() <= 1


def test_dicom_padding_of_signed_pixels_written_unsigned(tmp_path):
    x = RAMP.astype(np.int16) - 100
    x[:8] = -2000
    meta = write_dicom(tmp_path / "x.dcm", x, PixelRepresentation=1)
    ds = pydicom.dcmread(meta)
    ds.add_new("PixelPaddingValue", "US", 63536)
    ds.save_as(meta)
    assert (opened(meta)[8:] == RAMP[8:]).all() and not opened(meta)[:8].any()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_padding_is_black_and_does_not_count(tmp_path, photometric):
    x = np.full((300, 300), 63536 if photometric == "MONOCHROME2" else 0, np.uint16)
    x[20:20 + RAMP.shape[0], 20:20 + RAMP.shape[1]] = RAMP.astype(np.uint16) + 1000
    fields = dict(PixelPaddingValue=int(x[0, 0]), PhotometricInterpretation=photometric)
    got = opened(write_dicom(tmp_path / "x.dcm", x, **fields))
    inner = got[20:20 + RAMP.shape[0], 20:20 + RAMP.shape[1]]
    assert (inner == (RAMP if photometric == "MONOCHROME2" else 255 - RAMP)).all() and got.sum() == inner.sum()


@pytest.mark.parametrize("fields", [dict(WindowWidth=100), dict(WindowWidth=-5, WindowCenter=50),
                                    dict(WindowWidth=[0, 10], WindowCenter=[1, 2]),
                                    dict(VOILUTSequence=[Dataset()]), dict(PixelPaddingValue=[0, 1])])
def test_dicom_senseless_window_is_none(tmp_path, fields):
    assert (opened(write_dicom(tmp_path / "x.dcm", RAMP, **fields)) == RAMP).all()


def test_dicom_without_a_preamble(tmp_path):
    "With its file meta fields, and, as the oldest are, without them"
    whole = write_dicom(tmp_path / "x.dcm", RAMP)
    (tmp_path / "short.dcm").write_bytes(whole.read_bytes()[132:])
    assert (opened(tmp_path / "short.dcm") == RAMP).all()
    ds = pydicom.dcmread(whole)
    ds.Modality = "CR"
    pydicom.dcmwrite(tmp_path / "old.dcm", Dataset(ds), implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert (tmp_path / "old.dcm").read_bytes()[128:132] != b"DICM" and (opened(tmp_path / "old.dcm") == RAMP).all()


def test_exif_turns_sixteen_bits_too(tmp_path):
    deep, exif = Image.fromarray(RAMP.astype(np.uint16) * 257), Image.Exif()
    exif[0x0112] = 3  # upside down
    deep.save(tmp_path / "x.png", exif=exif)
    assert (opened(tmp_path / "x.png") == RAMP[::-1, ::-1]).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_voi_lut_keeps_its_scale(tmp_path, photometric):
    "A table that halves: white stays far from white, though nothing in the picture is brighter"
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [256, 0, 8], (np.arange(256) // 2).astype("u2").tobytes()
    got = opened(write_dicom(tmp_path / "x.dcm", RAMP, VOILUTSequence=[lut], PhotometricInterpretation=photometric))
    assert (got == (RAMP // 2 if photometric == "MONOCHROME2" else 255 - RAMP // 2)).all()


def test_dicom_in_two_steps(tmp_path):
    "The header says what is in the file before anything is decoded; the values are grey, or in colour."
    path = write_dicom(tmp_path / "x.dcm", RAMP)
    header = read_header(path)
    assert (header.Rows, header.Columns) == RAMP.shape and is_dicom(path.read_bytes()[:132])
    assert (display_values(header) == RAMP).all() and display_values(header).dtype == np.uint8
    with open(path, "rb") as file: assert (display_values(read_header(file)) == RAMP).all()
    fields = dict(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    colour = write_dicom(tmp_path / "rgb.dcm", np.repeat(RAMP[..., None], 3, 2), **fields)
    assert display_values(read_header(colour)).shape == (*RAMP.shape, 3)


# --- what is turned away: one sentence, with the file's name

def turned_away(path, words, error=ValueError):
    with pytest.raises(error) as e: open_radiograph(path)
    sentence = str(e.value)
    assert type(e.value) is error
    assert str(path) in sentence and words in sentence and "\n" not in sentence and sentence.endswith("."), sentence


def test_missing_path(tmp_path): turned_away(tmp_path / "nowhere.png", "does not exist", FileNotFoundError)


def test_directory(tmp_path): turned_away(tmp_path, "not a file")


def test_empty_file(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    turned_away(tmp_path / "x.png", "empty")


@pytest.mark.parametrize("content", [b"Dear colleague,\n", b"a" * 5000, b"%PDF-1.7\n", b"\x89PNG\r\n\x1a\n",
                                     b"\xff\xd8\xff", bytes(range(256)) * 9])
def test_something_else(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    turned_away(tmp_path / "x.png", "not a PNG, JPEG, TIFF or DICOM")


def test_other_picture_formats_are_refused(tmp_path):
    for kind in ("GIF", "PPM"):
        turned_away(save(tmp_path / f"x.{kind}", Image.fromarray(RAMP), format=kind), "not a PNG, JPEG, TIFF or DICOM")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [.3, .6, .95])
def test_truncated(tmp_path, kind, share):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, kind)
    (tmp_path / "x").write_bytes(data.getvalue()[:int(len(data.getvalue()) * share)])
    turned_away(tmp_path / "x", "cut short")


@pytest.mark.parametrize("size", [(1, 1), (31, 400), (400, 31)])
def test_too_small(tmp_path, size):
    turned_away(save(tmp_path / "x.png", Image.new("L", size)), f"{size[0]} x {size[1]} pixels")


@pytest.mark.parametrize("side", [9_000, 11_000, 80_000])  # below, within and above Pillow's own limits
def test_huge_header_is_refused_before_decoding(tmp_path, side, recwarn):
    path = tmp_path / "x.png"
    path.write_bytes(png_header(side, side))
    turned_away(path, "80 million")
    assert not recwarn.list


def test_huge_jpeg_header(tmp_path):
    data = io.BytesIO()
    Image.fromarray(RAMP).save(data, "JPEG")
    data = bytearray(data.getvalue())
    at = data.index(b"\xff\xc0") + 5  # start of frame: length, precision, then height and width
    data[at:at + 4] = struct.pack(">HH", 65_000, 65_000)
    (tmp_path / "x.jpg").write_bytes(data)
    turned_away(tmp_path / "x.jpg", "80 million")


def test_dicom_turned_away(tmp_path):
    x = RAMP.astype(np.uint16)
    turned_away(write_dicom(tmp_path / "a.dcm", x, drop=["PixelData"]), "without a picture")
    turned_away(write_dicom(tmp_path / "b.dcm", x, NumberOfFrames=3), "3 frames")
    turned_away(write_dicom(tmp_path / "c.dcm", x, Rows=60_000, Columns=60_000), "80 million")
    turned_away(write_dicom(tmp_path / "d.dcm", x[:, :5].copy()), "5 x 64 pixels")
    whole = write_dicom(tmp_path / "e.dcm", x).read_bytes()
    (tmp_path / "e.dcm").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match="DICOM"): open_radiograph(tmp_path / "e.dcm")


@pytest.mark.parametrize("good,bad", [(b"\x28\0\x10\0US", b"\x28\0\x10\0U!"),
                                      (b"\x28\0\x08\0IS\x02\0002", b"\x28\0\x08\0IS\x02\0x"),
                                      (b"\x28\0\x11\0US\x02\0", b"\x28\0\x11\0US\x03\0")])  # a kind, a number, a length
def test_dicom_with_a_damaged_field(tmp_path, good, bad):
    whole = write_dicom(tmp_path / "x.dcm", RAMP, NumberOfFrames=2).read_bytes()
    assert whole.count(good) == 1
    (tmp_path / "x.dcm").write_bytes(whole.replace(good, bad))
    turned_away(tmp_path / "x.dcm", "damaged DICOM")


# --- what a picture shows

CHEST = np.asarray(Image.open(assets / "example" / "frontal.png")).astype(np.uint16)  # (224,224) or larger, 8 bits
DEEP = CHEST * 16  # 12 bits


def alike(a, b): return np.corrcoef(np.asarray(a, float).ravel(), np.asarray(b, float).ravel())[0, 1]


def test_ordinary_pictures_are_opened_as_they_are(tmp_path):
    "Those that come with the package, byte by byte, and one that has no black and no white."
    for path in (assets / "example").glob("*.png"):
        with Image.open(path) as image: assert open_radiograph(path).tobytes() == image.tobytes()
    dull = (CHEST // 2 + 50).astype(np.uint8)
    assert (opened(save(tmp_path / "x.png", Image.fromarray(dull))) == dull).all()


@pytest.mark.parametrize("mode,value", [("L", 0), ("L", 255), ("L", 77), ("RGB", "grey"), ("I;16", 300), ("LA", 0)])
def test_one_grey_is_refused(tmp_path, mode, value):
    turned_away(save(tmp_path / "x.png", Image.new(mode, (64, 64), value)), "shows nothing")


def test_next_to_one_grey_is_refused(tmp_path):
    "A black sheet as a JPEG has it, with a letter; noise that nobody can see. A page of text shows something."
    noise = np.random.default_rng(0).integers(0, 5, (300, 300), dtype=np.uint8)
    turned_away(save(tmp_path / "noise.png", Image.fromarray(noise)), "shows nothing")
    letter = Image.new("L", (300, 300))
    ImageDraw.Draw(letter).text((10, 10), "L", 255, font_size=30)
    turned_away(save(tmp_path / "letter.jpg", letter), "shows nothing")
    text = np.random.default_rng(0).random((300, 300)) > .1
    check_shown("a page", Image.fromarray(text.astype("u1") * 255))


def test_greys():
    assert greys(np.bincount(np.full(1000, 7), minlength=256)) == 1
    assert greys(np.bincount([3] * 970 + list(range(30)), minlength=256)) == 1
    assert greys(np.full(256, 4)) == 246  # the smallest number of greys that is 96 in a hundred of 256


def test_bulk():
    "Of numbers without outliers it is the whole range; an outlier does not count."
    assert bulk(np.arange(1000, 2001)) == (1000, 2000)
    low, high = bulk(np.append(np.arange(1000, 2001), [0, 65_535]))
    assert 700 < low < 1000 and 2000 < high < 2300
    x = np.random.default_rng(0).integers(0, 4096, (1500, 1500), dtype=np.uint16)  # more than a million
    assert (to_grey(x) == np.round(x / np.float32(4095) * 255)).all()


@pytest.mark.parametrize("kind", ["png", "tif", "dcm", "MONOCHROME1"])
def test_a_bright_marker_does_not_darken_the_body(tmp_path, kind):
    x = DEEP.copy()
    x[5:20, 5:20] = 60_000
    if kind == "MONOCHROME1": write_dicom(tmp_path / "x", 65_535 - x, PhotometricInterpretation=kind)
    elif kind == "dcm": write_dicom(tmp_path / "x", x)
    else: Image.fromarray(x).save(tmp_path / "x", format={"png": "PNG", "tif": "TIFF"}[kind])
    got = opened(tmp_path / "x")[30:]
    assert alike(got, CHEST[30:]) > .99 and got.std() > .7 * CHEST[30:].std()


@pytest.mark.parametrize("fields", [
    dict(WindowCenter=30_000, WindowWidth=400), dict(WindowCenter=128, WindowWidth=256),
    dict(WindowCenter=1, WindowWidth=1),
    dict(WindowCenter=128, WindowWidth=256, PhotometricInterpretation="MONOCHROME1")])
def test_a_window_that_shows_nothing_is_set_aside(tmp_path, fields):
    path = write_dicom(tmp_path / "x.dcm", DEEP + 500, **fields)
    image, kind = open_radiograph(path), fields.get("PhotometricInterpretation", "MONOCHROME2")
    own = opened(write_dicom(tmp_path / "y.dcm", DEEP + 500, PhotometricInterpretation=kind))
    assert (np.asarray(image) == own).all()
    warning, = image.info["warnings"]
    assert str(path) in warning and "display window" in warning and warning.endswith(".")
    assert open_guarded(path).info["warnings"] == [warning]
    assert open_radiograph(tmp_path / "y.dcm").info["warnings"] == []


def test_a_window_of_some_use_is_kept(tmp_path):
    image = open_radiograph(write_dicom(tmp_path / "x.dcm", DEEP, WindowCenter=int(np.median(DEEP)), WindowWidth=400))
    assert image.info["warnings"] == [] and np.mean((np.asarray(image) == 0) | (np.asarray(image) == 255)) > .4


def test_a_slope_of_nothing_is_none(tmp_path):
    plain = opened(write_dicom(tmp_path / "x.dcm", DEEP))
    for fields in (dict(RescaleSlope="", RescaleIntercept=""), dict(RescaleSlope=1, RescaleIntercept=""),
                   dict(RescaleSlope=0, RescaleIntercept=0), dict(RescaleIntercept=-1000)):
        assert (opened(write_dicom(tmp_path / "x.dcm", DEEP, **fields)) == plain).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_inverse_is_inverted_once(tmp_path, photometric):
    fields = dict(PresentationLUTShape="INVERSE", PhotometricInterpretation=photometric)
    assert (opened(write_dicom(tmp_path / "x.dcm", 255 - RAMP, **fields)) == RAMP).all()
    fields = dict(PresentationLUTShape="IDENTITY", PhotometricInterpretation="MONOCHROME2")
    assert (opened(write_dicom(tmp_path / "x.dcm", RAMP, **fields)) == RAMP).all()


@pytest.mark.parametrize("bits,top,sign", [(12, 15, 0), (10, 15, 0), (12, 12, 0), (12, 15, 1), (12, 12, 1), (8, 12, 0)])
def test_bits_at_the_upper_end_of_the_word(tmp_path, bits, top, sign):
    "As a device before 2014 may write them: with what is beside them set to one."
    x = CHEST.astype(np.int64) * 2**bits // 256 - sign * 2**(bits - 1)
    word = (x << top + 1 - bits).astype(np.uint16) | np.uint16(2**(top + 1 - bits) - 1)
    if not sign: word |= np.uint16(2**16 - 2**(top + 1))
    fields = dict(BitsStored=bits, HighBit=top, PixelRepresentation=sign)
    want = opened(write_dicom(tmp_path / "x.dcm", x.astype(np.int16 if sign else np.uint16), PixelRepresentation=sign))
    assert (opened(write_dicom(tmp_path / "y.dcm", word, **fields)) == want).all()


def test_modality_tables(tmp_path):
    "One that says 12 bits is read as one of 16; an empty one is passed over."
    table = (np.sqrt(np.arange(256)) * 255).astype("u2")
    got = {}
    for bits in (12, 16):
        lut = Dataset()
        lut.LUTDescriptor, lut.LUTData, lut.ModalityLUTType = [256, 0, bits], table.tobytes(), "US"
        got[bits] = opened(write_dicom(tmp_path / "x.dcm", CHEST.astype("u1"), ModalityLUTSequence=[lut]))
    assert (got[12] == got[16]).all() and np.abs(got[16] - to_grey(table[CHEST]).astype(int)).max() <= 1
    for empty in [], [Dataset()]:
        assert (opened(write_dicom(tmp_path / "x.dcm", RAMP, ModalityLUTSequence=empty)) == RAMP).all()


def test_32_bits(tmp_path):
    x = RAMP.astype(np.uint32) * 2**24
    x[0] = 17  # far apart, and not evenly
    assert (opened(write_dicom(tmp_path / "x.dcm", x))[1:] == RAMP[1:]).all()


# --- other kinds of file

@pytest.mark.parametrize("kind,form", [("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("BMP", {}),
                                       ("WEBP", {"lossless": True})])
def test_other_kinds_of_picture(tmp_path, kind, form):
    path = save(tmp_path / "x", Image.fromarray(RAMP), format=kind, **form)
    assert np.abs(opened(path).astype(int) - RAMP).max() <= 1


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_tiff_of_any_depth_and_either_sign(tmp_path, kind, white_is_zero):
    x = RAMP.astype(kind) * (257 if kind is np.uint16 else 1)
    if white_is_zero and kind is not np.uint8: x = x.max() - x  # Pillow turns those of 8 bits when it writes them
    path = save(tmp_path / "x.tif", Image.fromarray(x), tiffinfo={262: 0 if white_is_zero else 1})
    assert (opened(path) == RAMP).all()


def test_tiff_that_lies_on_its_side_or_has_holes(tmp_path):
    assert opened(save(tmp_path / "x.tif", Image.fromarray(RAMP), tiffinfo={274: 6})).shape == (256, 64)
    holes = RAMP.astype(np.float32)
    holes[:9, :9] = np.nan
    got = opened(save(tmp_path / "x.tif", Image.fromarray(holes)))
    assert not got[:9, :9].any() and (got[9:] == RAMP[9:]).all()


def test_tiff_of_several_pages_is_refused(tmp_path):
    page = Image.fromarray(RAMP)
    turned_away(save(tmp_path / "x.tif", page, save_all=True, append_images=[page, page]), "3 pictures")


def test_png_whose_notes_are_large(tmp_path):
    "Two megabytes of text, in two kilobytes, are no part of the picture."
    data = io.BytesIO()
    Image.fromarray(RAMP).save(data, "PNG")
    whole, text = data.getvalue(), zlib.compress(b"<x>" * 700_000)
    for note in (png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + text), png_chunk(b"iCCP", b"x\0\0" + text),
                 png_chunk(b"zTXt", b"Comment\0\0" + text), png_chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000)):
        (tmp_path / "x.png").write_bytes(whole[:33] + note + whole[33:])
        assert (opened(tmp_path / "x.png") == RAMP).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_png_that_is_transparent_all_over(tmp_path, mode):
    image = Image.fromarray(RAMP).convert(mode)
    image.putalpha(0)
    assert (opened(save(tmp_path / "x.png", image)) == RAMP).all()


def jpeg(x, **form):
    data = io.BytesIO()
    Image.fromarray(x.astype(np.uint8)).save(data, "JPEG", **form)
    return data.getvalue()


@pytest.mark.parametrize("form", [{}, dict(progressive=True), dict(optimize=True, quality=95),
                                  dict(restart_marker_rows=1)])
def test_jpeg_that_lacks_data(tmp_path, form):
    "Cut in the middle with a mark for its end; or with a hole of zeros. A sound one with flat corners is none of them."
    whole, path = jpeg(CHEST, **form), tmp_path / "x.jpg"
    path.write_bytes(whole[:len(whole) // 2] + b"\xff\xd9")
    turned_away(path, "damaged")
    if not form:
        half = len(whole) // 2
        path.write_bytes(whole[:half] + bytes(40) + whole[half + 40:])
        turned_away(path, "damaged")
    flat = CHEST.copy()
    flat[-40:] = 128
    path.write_bytes(jpeg(flat, **form))
    assert alike(opened(path), flat) > .99


def test_jpeg_of_few_bytes_that_says_it_is_large(tmp_path):
    small = bytearray(jpeg(np.full((64, 64), 77)))
    at = small.index(b"\xff\xc0") + 5
    small[at:at + 4] = struct.pack(">HH", 5000, 5000)
    (tmp_path / "x.jpg").write_bytes(small)
    assert len(small) < 800
    turned_away(tmp_path / "x.jpg", "damaged")


def test_jpeg_with_a_corrupt_note_on_its_position(tmp_path, recwarn):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\1\0\0\0\6"
    (tmp_path / "x.jpg").write_bytes(jpeg(CHEST, exif=exif))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Image.open(tmp_path / "x.jpg").getexif()
    assert said  # Pillow does say something
    assert alike(opened(tmp_path / "x.jpg"), CHEST) > .99 and not recwarn.list


# --- compressed DICOM

@pytest.mark.parametrize("name,shape", [("SC_rgb_jpeg_gdcm.dcm", (100, 100)), ("JPGExtended.dcm", (1024, 256)),
                                        ("JPEG-lossy.dcm", (1024, 256)), ("MR_small_jpeg_ls_lossless.dcm", (64, 64))])
def test_compressions_of_hospital_archives(name, shape):
    pytest.importorskip("imagecodecs")
    path = get_testdata_file(name, download=False)
    assert opened(path).shape == shape
    if name.startswith("MR"): assert (opened(path) == opened(get_testdata_file("MR_small.dcm", download=False))).all()


def test_signed_numbers_of_few_bits_in_jpeg_ls(tmp_path):
    codecs = pytest.importorskip("imagecodecs")
    x = DEEP.astype(np.int16) - 2048
    fields = dict(BitsStored=12, HighBit=11, PixelRepresentation=1)
    packed = encapsulate([codecs.jpegls_encode((x & 4095).astype(np.uint16))])
    path = write_dicom(tmp_path / "x.dcm", x, syntax="1.2.840.10008.1.2.4.80", PixelData=packed, **fields)
    assert (opened(path) == opened(write_dicom(tmp_path / "y.dcm", x, **fields))).all()


def test_without_the_decoder_the_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    turned_away(get_testdata_file("JPGExtended.dcm", download=False), "pip install 'xraycap[dicom]'")


# --- files that are made to harm

def packed_dicom(path, frame, syntax, shape=(256, 64), **fields):
    return write_dicom(path, np.zeros(shape, np.uint8), syntax=syntax, PixelData=encapsulate([frame]), **fields)


def larger_than_it_says(path, kind):
    data = io.BytesIO()
    Image.new("L", (9_000, 9_000)).save(data, kind)
    return packed_dicom(path, data.getvalue(), JPEG2000 if kind == "JPEG2000" else JPEGBaseline8Bit)


def rle_bomb(path):
    header = struct.pack("<16I", 1, 64, *[0] * 14)
    return packed_dicom(path, header + b"\x81\0" * 8_000_000, RLELossless)


def segmented_palette(path):
    "An indirect segment repeats what came before it, which may be such a segment: 16 bits in, no end out."
    tables = {f"{colour}PaletteColorLookupTableDescriptor": [65536 - 1, 0, 16] for colour in ("Red", "Green", "Blue")}
    data = struct.pack("<HHH", 1, 65535, 9) * 8000
    tables |= {f"Segmented{colour}PaletteColorLookupTableData": data for colour in ("Red", "Green", "Blue")}
    return write_dicom(path, RAMP, PhotometricInterpretation="PALETTE COLOR", **tables)


def deflated(path):
    "Near a GB of zeros in a private field, deflated, written by hand"
    write_dicom(path, RAMP)
    whole = path.read_bytes().replace(ExplicitVRLittleEndian.encode() + b"\0", DeflatedExplicitVRLittleEndian.encode())
    at = 144 + int.from_bytes(whole[140:144], "little")  # behind the file's own fields
    pack = zlib.compressobj(1, zlib.DEFLATED, -15)
    size = 900 * 2**20
    field = b"\x09\0\x10\x10OB\0\0" + struct.pack("<I", size)
    with open(path, "wb") as out:
        out.write(whole[:at] + pack.compress(field))
        for _ in range(900): out.write(pack.compress(bytes(2**20)))
        out.write(pack.compress(whole[at:]) + pack.flush())
    return path


def many_fields(path):
    write_dicom(path, RAMP)
    whole = path.read_bytes()
    at = whole.index(b"\x28\0\2\0US")
    path.write_bytes(whole[:at] + b"\x09\0\x10\x10UT\0\0\0\0\0\0" * 1_600_000 + whole[at:])
    return path


def many_chunks(path):
    data = io.BytesIO()
    Image.fromarray(RAMP).save(data, "PNG")
    path.write_bytes(data.getvalue()[:33] + png_chunk(b"teXt", b"") * 1_600_000 + data.getvalue()[33:])
    return path


def jpeg_bomb(path): return larger_than_it_says(path, "JPEG")


def jpeg_2000_bomb(path): return larger_than_it_says(path, "JPEG2000")


BOMBS = [rle_bomb, segmented_palette, many_fields, many_chunks, jpeg_bomb, jpeg_2000_bomb]


def cost(path, how="open_radiograph"):
    "What opening a file says, takes in seconds of a processor, and needs in MB above rest, measured in a process."
    code = f"""
import json, resource, sys, time
import pydicom, pydicom.pixels
from xraycap.radiographs import {how}
def used(): return [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
before = used()
try: said = list({how}(sys.argv[1]).size)
except ValueError as e: said = str(e)
after = used()
seconds = [b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(before, after)]
rest = before[0].ru_maxrss
print(json.dumps([said, sum(seconds), (max(o.ru_maxrss for o in after) - rest) / 1024]))"""
    return json.loads(subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured, and limited, on Linux")
@pytest.mark.parametrize("bomb", BOMBS)
def test_sizes_are_known_before_anything_is_decoded(tmp_path, bomb):
    "Without any limit of the operating system: refused, or read, in two seconds, and with little memory."
    said, seconds, memory = cost(bomb(tmp_path / "x"))
    assert said == [256, 64] if bomb is many_chunks else str(tmp_path / "x") in said
    assert seconds < 2 and memory < 200


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured, and limited, on Linux")
@pytest.mark.parametrize("bomb", [deflated, rle_bomb])
def test_a_file_takes_so_much_memory_and_no_more(tmp_path, bomb):
    said, seconds, memory = cost(bomb(tmp_path / "x"), "open_guarded")
    assert str(tmp_path / "x") in said and seconds < 12 and memory < 600


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of a processor's time")
def test_a_file_takes_so_much_time_and_no_more(tmp_path):
    "A progressive JPEG of 16 million pixels that is painted over a thousand times."
    data = io.BytesIO()
    Image.new("L", (4000, 4000), 77).save(data, "JPEG", progressive=True)
    whole = data.getvalue()
    last = whole.rindex(b"\xff\xda")
    (tmp_path / "x.jpg").write_bytes(whole[:last] + whole[last:-2] * 3000 + b"\xff\xd9")
    begun = time.monotonic()
    with pytest.raises(ValueError, match="more than .* 1 seconds"): open_guarded(tmp_path / "x.jpg", seconds=1)
    assert time.monotonic() - begun < 30


def test_guarded_is_the_same(tmp_path):
    "The picture and the sentences, for a path and for a file that is open, also of a name that is no ASCII."
    path = save(tmp_path / "Thörax.png", Image.fromarray(DEEP))
    for given in (path, str(path), io.BytesIO(path.read_bytes())):
        assert open_guarded(given).tobytes() == open_radiograph(path).tobytes()
    for name, content in (("letter.png", b"Dear colleague"), ("empty.png", b""), ("half.png", path.read_bytes()[:999])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError) as want: open_radiograph(tmp_path / name)
        with pytest.raises(ValueError) as got: open_guarded(tmp_path / name)
        assert str(got.value) == str(want.value)
    with pytest.raises(FileNotFoundError): open_guarded(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=f"{CHEST.shape[1]} x {CHEST.shape[0]}"): open_guarded(path, max_pixels=1000)


def test_guarded_keeps_the_library_of_python(tmp_path, monkeypatch):
    "A folder to import from may hold a file with the name of one of Python's own modules: it came after Python's."
    (tmp_path / "re.py").write_text("raise SystemExit('not the real one')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    path = save(tmp_path / "x.png", Image.fromarray(DEEP))
    assert open_guarded(path).tobytes() == open_radiograph(path).tobytes()


def test_guarded_does_not_run_what_lies_in_the_folder(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("open('run', 'w')")
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "x.png", Image.fromarray(RAMP))
    assert open_guarded(path).size == (256, 64) and not (tmp_path / "run").exists()


def test_dicom_of_too_many_fields(tmp_path):
    path = many_fields(tmp_path / "x.dcm")
    turned_away(path, f"more than {MAX_FIELDS:,} fields")


# --- real ones

@pytest.mark.skipif(not REAL.exists(), reason="no real radiographs here")
def test_real_radiographs():
    files = sorted(REAL.glob("*.png"))
    assert len(files) == 4
    for o in files:
        image = open_radiograph(o)
        x = square(image)
        assert image.mode == "L" and min(image.size) >= 512
        assert x.shape == (224, 224) and x.std() > 20

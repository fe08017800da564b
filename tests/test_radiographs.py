"""open_radiograph: every kind of file a user may bring, good and bad."""
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from xraycap.dicom import display_values, is_dicom, read_header
from xraycap.radiographs import open_radiograph, square

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


def write_dicom(path, x, drop=(), **fields):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.Rows, ds.Columns = x.shape[:2]
    bits = x.dtype.itemsize * 8
    ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, bits, bits, bits - 1, 0
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.PixelData = x.tobytes()
    for k, v in fields.items(): setattr(ds, k, v)
    for k in drop: delattr(ds, k)
    ds.save_as(path, enforce_file_format=True)
    return path


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
    assert (opened(save(tmp_path / "x.png", Image.fromarray(np.full((64, 64), 300, np.uint16)))) == 0).all()


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
    path = save(tmp_path / "x.png", Image.new("L", shape[::-1], 90))
    assert open_radiograph(path).size == shape[::-1]
    x = square(open_radiograph(path))
    assert x.shape == (224, 224) and x.dtype == np.uint8 and (x == 90).all()
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
    turned_away(tmp_path / "x.png", "not a PNG, JPEG or DICOM")


def test_other_picture_formats_are_refused(tmp_path):
    for kind in ("TIFF", "GIF", "BMP"):
        turned_away(save(tmp_path / f"x.{kind}", Image.fromarray(RAMP), format=kind), "not a PNG, JPEG or DICOM")


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

"What all tests share: tests marked `slow` run only with `pytest --slow`; `browser` is Chromium."
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from torch import nn

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8))


def seen(model, x):
    "Give the batch norms statistics of `x`, and scales and shifts of their own."
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)
    model.train().features(x)
    return model.eval()


def agree(got, want, tol=1e-4): assert (got - want).abs().max() < tol * want.abs().max()


def two_greys(path, grey):
    "A picture of this mean grey, which shows something: its lower half is lighter."
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("L", (40, 40), grey - 9)
    picture.paste(grey + 9, (0, 20, 40, 40))
    picture.save(path)


def write_dicom(path, x, drop=(), syntax=ExplicitVRLittleEndian, **fields):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = syntax
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


@pytest.fixture
def few_studies(monkeypatch):
    "All that reads studies gets 40 for training, 10 for validation and 12 to test, with random features."
    from xraycap.studies import load_studies as real
    def few(images="phantom", split="chen"):
        studies = real(images, split)
        sizes = {"train": 40, "val": 10, "test": 12}
        few = pd.concat([studies[studies.split == part].head(n) for part, n in sizes.items()])
        few.attrs.update(studies.attrs)
        return few
    def noise(studies, encoder):
        return {u: np.random.default_rng(abs(u)).normal(size=(98, 1024)).astype("float16") for u in studies.uid}
    for module in ("studies", "training"): monkeypatch.setattr(f"xraycap.{module}.load_studies", few)
    monkeypatch.setattr("xraycap.features.store_features", noise)
    monkeypatch.setattr("xraycap.training.readable_features",
                        lambda *args, strict: (noise(*args), pd.DataFrame({"uid": []})))
    return few()


def pytest_addoption(parser): parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes, or compares with a large library; runs with --slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"): return
    for item in items:
        if "slow" in item.keywords: item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="module")  # not longer: while it is open, asyncio.run fails in the tests of the same process
def browser():
    "Headless Chromium, driven by Playwright: `browser.new_page(viewport=dict(width=390, height=844))`."
    missing = "Playwright is not installed: pip install -e '.[dev]'"
    playwright = pytest.importorskip("playwright.sync_api", reason=missing)
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None: pytest.skip("there is no Chromium: tools/chromium.sh installs it where it may")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=path, args=[
            "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"])
        yield chromium
        chromium.close()

"""From an archive of images to a score card, by the commands that a user types; once for each way to bring images.

The archive has the real layout and the real names. Its pictures are simulated, small and few, so only the path is
tested here."""
import csv
import json
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from xraycap.cli import app
from xraycap.encoder import ImageEncoder
from xraycap.features import FeatureStore
from xraycap.phantom import phantom
from xraycap.radiographs import open_radiograph, square
from xraycap.studies import load_studies

SIZES = {"train": 8, "val": 2, "test": 3}


def run(*args):
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def studies():
    "A few studies of each part of the chen split, one of them with three images"
    known = load_studies()
    three = known[(known.images.map(len) == 3) & (known.split == "train")].head(1)
    pairs = known[known.images.map(len) == 2]
    few = pd.concat([three, *(pairs[pairs.split == part].head(n - (part == "train")) for part, n in SIZES.items())])
    assert few.split.value_counts().to_dict() == SIZES
    return few


@pytest.fixture(scope="module")
def pictures(studies):
    "{image id: uint8 (96, 96)}"
    views = {o.uid: dict(zip(("frontal", "lateral"), phantom(o.uid, o.mesh, 96)[:2])) for o in studies.itertuples()}
    return {image: views[o.uid][view] for o in studies.itertuples() for image, view in zip(o.images, o.views)}


def save(picture, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def bring_openi(tmp_path, studies, pictures, monkeypatch):
    "NLMCXR_png.tgz on a server, and the command that downloads it"
    lost = studies.images.iloc[-1][1]
    for image, picture in pictures.items():
        if image != lost: save(picture, tmp_path / "away" / f"{image}.png")
    with tarfile.open(tmp_path / "NLMCXR_png.tgz", "w:gz") as tar:
        for o in (tmp_path / "away").iterdir(): tar.add(o, o.name)
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, args=[.02], daemon=True).start()
    monkeypatch.setenv("XRAYCAP_URL_IMAGES", f"http://127.0.0.1:{server.server_port}/NLMCXR_png.tgz")
    assert "CC BY-NC-ND 4.0" in run("download", "images").stderr
    server.shutdown()
    return "openi", "openi", "the real radiographs of Open-i"


def bring_annotation(tmp_path, studies, pictures, monkeypatch):
    parts = {part: [] for part in SIZES}
    for o in studies.itertuples():
        names = [f"CXR{o.uid}_IM/{i}.png" for i in range(len(o.images))]
        for name, image in zip(names, o.images): save(pictures[image], tmp_path / "iu_xray" / "images" / name)
        parts[o.split].append(dict(id=f"CXR{o.uid}_IM", report=o.findings, image_path=names, split=o.split))
    path = tmp_path / "iu_xray" / "annotation.json"
    path.write_text(json.dumps(parts))
    return path, "iu_xray/annotation.json", "the images of iu_xray/annotation.json"


def bring_csv(tmp_path, studies, pictures, monkeypatch):
    path = tmp_path / "clinic" / "data.csv"
    for image, picture in pictures.items(): save(picture, path.with_name(f"{image}.png"))
    with path.open("w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["frontal", "lateral", "findings"])
        for o in studies.itertuples():
            first = {view: f"{image}.png" for image, view in reversed([*zip(o.images, o.views)])}
            table.writerow([first.get("frontal", ""), first.get("lateral", ""), o.findings])
    return path, "clinic/data.csv", "the images of clinic/data.csv"


@pytest.mark.parametrize("bring", [bring_openi, bring_annotation, bring_csv])
def test_from_images_to_a_score_card(tmp_path, studies, pictures, monkeypatch, capsys, bring):
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path / "home"))
    images, name, words = bring(tmp_path, studies, pictures, monkeypatch)
    model = tmp_path / "model"

    load_studies(images)
    gaps = ("openi: 13 of 3,337 studies have findings and an image here; 26 of 6,473 images are here; "
            "the first that is missing is CXR")
    assert capsys.readouterr().out.startswith(gaps) if images == "openi" else capsys.readouterr().out == ""

    trained = run("train", "--images", images, "--encoder", "chest", "--out", model, "--epochs", 1)
    assert f"epoch 1 of 1 on {words}," in trained.stdout and "simulated" not in trained.stdout
    assert json.loads((model / "config.json").read_text())["images"] == name

    card = json.loads(run("evaluate", "--model", model, "--images", images, "--split", "chen", "--json").stdout)
    assert card["images"] == name and 0 <= card["bleu_1"] <= 1 and 1 <= card["distinct"] <= 3
    said = run("evaluate", "--model", model, "--images", images, "--split", "chen").stdout
    assert f"Measured on {words}. The model learnt from {words}." in said and "simulated" not in said
    assert [line.split()[-1] for line in said.splitlines() if line.startswith("images ")] == [name]

    table = load_studies(images)
    store, = (tmp_path / "home" / "features").glob("*.f16")
    store = FeatureStore(store)
    used = table[table.split != ""]
    assert len(store) >= len(used) == sum(SIZES.values()) and all(u in store for u in used.uid)
    for _, study in used.iloc[[0, -1]].iterrows():  # the features are those of the files, frontal first
        views = np.stack([square(open_radiograph(o)) for o in (study.frontal, study.lateral)])
        with torch.inference_mode(): want = ImageEncoder("chest").spatial(torch.from_numpy(views)).flatten(0, 1)
        np.testing.assert_allclose(store[study.uid].astype("float32"), want.numpy(), atol=.02)

    made = json.loads(run("report", study.frontal, "--model", model, "--out", tmp_path, "--json").stdout)
    assert made["images"] == name
    assert made["notice"].endswith("Its encoder has seen simulated images and 1,169 radiographs.")


def test_an_encoder_is_chosen_for_the_images(tmp_path, studies, pictures, monkeypatch):
    "Real images get weights that have seen real ones."
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "weights").mkdir(parents=True)
    (tmp_path / "home" / "weights" / "xrv-nih.safetensors").touch()  # fetched before
    images, *_ = bring_csv(tmp_path, studies, pictures, monkeypatch)
    def wanted(weights): raise ValueError(f"wanted: {weights}")
    monkeypatch.setattr("xraycap.encoder.ImageEncoder", wanted)
    monkeypatch.setattr("xraycap.training.ImageEncoder", wanted)
    for source, weights in {str(images): "xrv-nih", "phantom": "chest"}.items():
        for command in (["train", "--out", str(tmp_path / "model")], ["features"]):
            result = CliRunner().invoke(app, [*command, "--images", source])
            assert result.exit_code == 2 and f"wanted: {weights}" in result.stderr


def test_an_encoder_from_a_file(tmp_path, studies, pictures, monkeypatch):
    "The weights' path is kept whole, so that the model works from any folder."
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(ImageEncoder(None).state_dict(), "weights.pt")
    images, name, _ = bring_csv(tmp_path, studies, pictures, monkeypatch)
    run("train", "--images", images, "--encoder", "weights.pt", "--decoder", "lstm", "--epochs", 1)
    config = json.loads((tmp_path / "models" / "lstm" / "config.json").read_text())
    assert config["encoder"] == str(tmp_path / "weights.pt")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    card = json.loads(run("evaluate", "--model", tmp_path / "models" / "lstm", "--images", images, "--json").stdout)
    assert card["images"] == name


def test_an_encoder_that_is_not_there(tmp_path, studies, pictures, monkeypatch):
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path / "home"))
    images, *_ = bring_csv(tmp_path, studies, pictures, monkeypatch)
    no_name = "no weights' name"
    wrong = {"nonsense": no_name, "chexnet": no_name, "chexnet-torch": "xraycap download weights"}
    for encoder, says in wrong.items():
        args = ["train", "--images", images, "--encoder", encoder, "--out", tmp_path / "model"]
        result = CliRunner().invoke(app, [*map(str, args)])
        assert result.exit_code == 2 and says in result.stderr and not (tmp_path / "model").exists()
        lines = result.stderr.strip().splitlines()  # that the reports are few, and the mistake
        assert [line.startswith("xraycap: ") for line in lines] == [False, True]

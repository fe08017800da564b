"From image files to a report and its picture."
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from xraycap.captioner import Captioner, Report, example_study, overlay, report_figure, sentence_maps
from xraycap.lstm import LSTMDecoder
from xraycap.text import Vocab

words = "the heart is normal in size . no pleural effusion .".split()


@pytest.fixture(scope="module")
def captioner(): return Captioner.load("attention")


@pytest.fixture(scope="module")
def example(): return example_study()


@pytest.fixture(scope="module")
def report(captioner, example): return captioner.report(example["frontal"], example["lateral"])


def made_up(attention=True):
    views = tuple(np.random.default_rng(i).integers(0, 256, (224, 224), dtype="uint8") for i in range(2))
    weights = np.random.default_rng(2).dirichlet(np.ones(98), len(words)) if attention else None
    return Report(words, -5.0, weights, views, "mine", "openi", .1)


def test_a_report_says_something_about_itself(report):
    assert report.words and report.findings == " ".join(report.sentences)
    assert report.logp < 0 and report.seconds > 0 and report.model == "attention" and report.images == "phantom"
    assert report.attention.shape == (len(report.words), 98)
    np.testing.assert_allclose(report.attention.sum(1), 1, atol=1e-3)
    assert "Not for diagnosis" in report.notice and "simulated" in report.notice
    assert report.warnings == report.as_dict()["warnings"] == []


def test_the_picture_carries_the_warnings():
    said = "The first picture does not look like a chest radiograph."
    assert said in report_figure(replace(made_up(), warnings=[said])).get_supxlabel()


def test_the_notice_depends_on_the_images():
    assert "Not for diagnosis" in made_up().notice and "simulated" not in made_up().notice
    last = "Its encoder has seen simulated images and 1,169 radiographs."
    assert replace(made_up(), encoder="chest").notice.endswith(last)
    both = replace(made_up(), images="phantom", encoder="chest", radiographs={"table": "nih", "n": 1034})
    assert both.notice.startswith("Not for diagnosis: ") and both.as_dict()["notice"] == both.notice
    assert both.notice.endswith("from simulated images of Indiana reports and from 1,034 labelled radiographs of nih; "
                                "from no real image with its own report.")


def test_paths_images_and_arrays_are_the_same(captioner, example, report):
    files = example["frontal"], example["lateral"]
    images = [Image.open(f) for f in files]
    arrays = [np.asarray(i.convert("L")) for i in images]
    for given in map(str, files), images, [i.convert("RGB") for i in images], arrays:
        assert captioner.report(*given).words == report.words


def test_one_image_is_used_twice(captioner, example):
    one, two = captioner.report(example["frontal"]), captioner.report(example["frontal"], example["frontal"])
    assert one.words == two.words and one.logp == pytest.approx(two.logp)
    titles = [[ax.get_title() for ax in report_figure(r).axes] for r in (one, two)]
    assert "Frontal and lateral view" in titles[1] and not any("rontal" in title for title in titles[0])
    pictures = [ax.images[0].get_array() for ax in report_figure(one).axes if ax.images]
    assert {p.shape[:2] for p in pictures} == {(224, 224)}
    halves = np.tile(one.attention.reshape(-1, 2, 49).sum(1) / 2, 2)  # each view has half of what both had
    for p, q in zip(pictures, report_figure(replace(one, attention=halves)).axes):
        np.testing.assert_allclose(p, q.images[0].get_array(), atol=.01)


@pytest.mark.parametrize("bad", [None, b"bytes", [1, 2], torch.zeros(64, 64)])
def test_what_is_no_image_is_refused(captioner, bad):
    with pytest.raises(ValueError, match="An image must be"): captioner.report(bad)


def test_an_image_that_was_cut_short_is_refused(captioner, example, tmp_path):
    (tmp_path / "cut.png").write_bytes(example["frontal"].read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut short"): captioner.report(Image.open(tmp_path / "cut.png"))


def test_the_report_is_what_evaluate_scores(captioner, example, report):
    "Two paths to the words: files here, simulated arrays and the feature store's half precision there."
    from xraycap.phantom import phantom
    from xraycap.reports import load_reports
    reports = load_reports()
    study = reports[reports.uid == example["uid"]].iloc[0]
    made = phantom(study.uid, study.mesh)
    assert captioner.report(made.frontal, made.lateral).words == report.words
    assert study.findings == example["findings"]


@pytest.mark.parametrize("bad", [np.zeros((10, 10)), np.zeros((10, 10, 3), "uint8")])
def test_an_array_of_another_kind_is_refused(captioner, bad):
    with pytest.raises(ValueError, match="uint8"): captioner.report(bad)


def test_a_picture_of_one_grey_is_refused(captioner):
    for grey in 0, 255:
        with pytest.raises(ValueError, match="The image shows nothing"):
            captioner.report(np.full((100, 100), grey, "uint8"))


def test_an_lstm_has_no_maps(tmp_path):
    vocab = Vocab.from_texts(["the lungs are clear ."])
    torch.manual_seed(0)
    captioner = Captioner(LSTMDecoder(len(vocab)), vocab, dict(encoder="chest", images="phantom"))
    captioner.save(tmp_path / "lstm")
    report = Captioner.load(tmp_path / "lstm").report(np.tile(np.uint8([50, 200]), (50, 30)), k=1)
    assert report.attention is None and report.model == "lstm"
    report_figure(report).savefig(tmp_path / "report.png")


def test_maps_are_means_over_each_sentence():
    report = made_up()
    heart, effusion = sentence_maps(report)
    np.testing.assert_allclose(heart.ravel(), report.attention[:7].mean(0))
    np.testing.assert_allclose(effusion[1].ravel(), report.attention[7:, 49:].mean(0))
    report.words = ["."] + words[:-1]  # a stray full stop first, none at the end
    assert len(sentence_maps(report)) == len(report.sentences) == 2


def test_overlay_shows_the_place():
    view, weights = np.full((224, 224), 100, "uint8"), np.zeros((7, 7))
    np.testing.assert_allclose(overlay(view, weights), 100 / 255, atol=1e-6)
    weights[1, 5] = 1
    change = np.abs(overlay(view, weights) - 100 / 255).sum(2)
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert row // 32 == 1 and column // 32 == 5 and change[128:, :96].max() < 1e-6


def test_the_example_is_a_test_study(example):
    from xraycap.studies import chen_split
    assert chen_split()[example["uid"]] == "test" and example["findings"]
    for view in "frontal", "lateral":
        with Image.open(example[view]) as image: assert image.mode == "L" and min(image.size) >= 224


def test_importing_the_package_is_quick():
    code = "import sys, xraycap; print(*(m in sys.modules for m in ('numpy', 'torch', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["False"] * 3


def test_a_report_waits_for_nothing_that_it_does_not_need(tmp_path):
    "fastai alone takes two seconds to import, pandas and SciPy half a second."
    code = f"""
import sys
from typer.testing import CliRunner
from xraycap.cli import app
result = CliRunner().invoke(app, ["report", "--out", {str(tmp_path / "r.png")!r}, "--json"])
assert result.exit_code == 0, result.output
heavy = {{"fastai", "torchvision", "torch._dynamo", "sklearn", "IPython", "gensim", "nltk", "pandas", "scipy"}}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)

"What kind of picture it is: the distance against scipy's, each sentence, and the rule in the package on pictures."
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.spatial.distance import mahalanobis
from sklearn.datasets import load_sample_images

from xraycap.captioner import Captioner, example_study
from xraycap.encoder import FindingNet, save_encoder
from xraycap.files import assets
from xraycap.inputs import distances, fit_rule, input_rule, input_warnings, save_rule

SWAPPED = "The two views seem to be swapped: give the frontal one first."
NOISE = np.random.default_rng(0).integers(0, 256, (300, 300), dtype="uint8")


@pytest.fixture(scope="module")
def captioner(): return Captioner.load("attention")


def clouds(seed, n=3000):
    "Three kinds of points in ten dimensions, whose spreads differ."
    rng = np.random.default_rng(seed)
    stray = np.array([3, 2, 1, *[.1] * 7])
    at = {"frontal": 0, "lateral": 20, "negative": -20}
    return {kind: (kind, rng.normal(at[kind], stray * (1 + .3 * i), (n, 10))) for i, kind in enumerate(at)}


def test_within_the_directions_it_is_mahalanobis_distance():
    known, others = clouds(0), clouds(1)
    rule = fit_rule(known, others, k=3, shrink=0)
    x = np.random.default_rng(2).normal(0, 3, (20, 10))
    x[:, 3:] = 0  # then only the means of the clouds lie outside of the directions
    _, points = known["frontal"]
    away = [mahalanobis(p[:3], points[:, :3].mean(0), np.linalg.inv(np.cov(points[:, :3].T))) ** 2 / 3 for p in x]
    got = distances(x, rule)[:, 0] * rule["limits"][0]
    assert np.corrcoef(away, got)[0, 1] > .999


def test_two_in_a_hundred_stray_further_than_the_limit():
    rule = fit_rule(clouds(0), clouds(1), k=3)
    for i, (_, x) in enumerate(clouds(2).values()): assert .005 < np.mean(distances(x, rule)[:, i] > 1) < .05


def test_what_lies_outside_of_the_directions_counts():
    rule = fit_rule(clouds(0), clouds(1), k=3)
    usual, odd = np.zeros((2, 10))
    odd[7] = 3  # thirty times the usual
    assert distances(usual[None], rule)[0, 0] < 1 < distances(odd[None], rule).min()


@pytest.mark.parametrize("first, second, said", [
    (0, None, []), (0, 20, []),
    (20, None, ["The frontal view looks like a lateral one."]),
    (20, 20, ["The frontal view looks like a lateral one."]),
    (20, 0, [SWAPPED]),
    (0, 0, ["The lateral view looks like a frontal one."]),
    (-20, None, ["The frontal picture looks like a negative: bones should be white."]),
    (0, -20, ["The lateral picture looks like a negative: bones should be white."]),
    (99, None, ["The first picture does not look like a chest radiograph."]),
    (-20, 99, ["The frontal picture looks like a negative: bones should be white.",
               "The second picture does not look like a chest radiograph."])])
def test_each_sentence(first, second, said):
    rule = fit_rule(clouds(0), clouds(1), k=3)
    first, second = (None if at is None else np.full(10, float(at)) for at in (first, second))
    assert input_warnings(first, second, rule) == said
    assert input_warnings(first, second) == []  # without a rule nothing is known


def test_a_rule_is_kept_for_its_encoder(tmp_path):
    rule, path = fit_rule(clouds(0), clouds(1), k=3), tmp_path / "inputs.safetensors"
    assert input_rule("12345678", path) is None
    save_rule(rule, path, "12345678")
    input_rule.cache_clear()
    again = input_rule("12345678", path)
    assert again["kinds"] == rule["kinds"] and input_rule("87654321", path) is None
    _, x = clouds(2)["lateral"]
    np.testing.assert_allclose(distances(x, again), distances(x, rule), rtol=1e-3)


def test_the_rule_in_the_package_belongs_to_its_encoder(captioner):
    assert captioner.rule is not None and {"frontal", "lateral", "negative"} == {*captioner.rule["kinds"]}
    assert (assets / "inputs.safetensors").stat().st_size < 500_000


def test_what_is_odd_about_a_study(captioner):
    example = example_study()
    front, side = (np.asarray(Image.open(example[view]).convert("L")) for view in ("frontal", "lateral"))
    assert captioner.report(front, side).warnings == captioner.report(front).warnings == []
    assert captioner.report(side, front).warnings == [SWAPPED]
    assert captioner.report(side).warnings == ["The frontal view looks like a lateral one."]
    assert captioner.report(front, front).warnings == ["The lateral view looks like a frontal one."]
    negative, = captioner.report(255 - front, side).warnings
    assert "frontal picture looks like a negative" in negative


def page_of_text():
    image = Image.new("L", (600, 700), 255)
    for y in range(30, 680, 20): ImageDraw.Draw(image).text((40, y), "The heart is normal in size. " * 3, fill=0)
    return image


@pytest.mark.parametrize("picture", [*map(Image.fromarray, load_sample_images().images), NOISE, page_of_text()],
                         ids=["temple", "flower", "noise", "text"])
def test_what_is_no_chest_is_told(captioner, picture):
    front = example_study()["frontal"]
    assert captioner.report(picture).warnings and captioner.report(front, picture).warnings


def test_other_weights_have_no_rule(captioner, tmp_path):
    torch.manual_seed(0)
    save_encoder(FindingNet(1), tmp_path / "other.safetensors", ["Edema"])
    about = dict(encoder=str(tmp_path / "other.safetensors"), images="mine")
    other = Captioner(captioner.decoder, captioner.vocab, about)
    assert other.rule is None and other.report(NOISE).warnings == []

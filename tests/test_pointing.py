"The pointing game by hand: places of pixels, and peaks against masks."
import numpy as np
import pytest

from xraycap.pointing import mask_places, pointing_game


def test_mask_places_pixel_by_pixel():
    rng = np.random.default_rng(0)
    masks = rng.random((2, 56, 56)) < .01  # places of 8 x 8 pixels
    expected = {49 * view + 7 * (y // 8) + x // 8 for view, y, x in np.argwhere(masks)}
    assert 0 < len(expected) < 98
    assert set(np.flatnonzero(mask_places(tuple(masks)))) == expected


def test_pointing_game_case_by_case():
    "Against a loop over all pairs of cases."
    rng = np.random.default_rng(1)
    n, names = 30, rng.choice(["Nodule", "Opacity", "Edema"], 30)
    attention, places = rng.random((n, 98)), rng.random((n, 98)) < .3
    game = pointing_game(attention, places, names)
    swapped = []
    for name in set(names):
        cases = [i for i in range(n) if names[i] == name]
        hits = [places[i, attention[i].argmax()] for i in cases]
        pairs = [places[i, attention[j].argmax()] for i in cases for j in cases if i != j]
        swapped += [np.mean(pairs)] * len(cases)
        assert game.n[name] == len(cases) and game.hit[name] == pytest.approx(np.mean(hits))
        assert game.chance[name] == pytest.approx(places[cases].mean())
        assert game.swapped[name] == pytest.approx(np.mean(pairs))
        p, m = np.mean(hits), len(cases)  # Wilson 1927
        middle = (p + 1.96**2 / (2 * m)) / (1 + 1.96**2 / m)
        half = 1.96 / (1 + 1.96**2 / m) * np.sqrt(p * (1 - p) / m + 1.96**2 / (4 * m**2))
        assert game.low[name] == pytest.approx(middle - half, abs=1e-4)
        assert game.high[name] == pytest.approx(middle + half, abs=1e-4)
    assert game.n["all"] == n and list(game.index)[-1] == "all"
    assert game.swapped["all"] == pytest.approx(np.mean(swapped))


def test_pointing_at_habit_is_told_from_pointing_at_the_patient():
    "A finding is in one of two places: who looks at the right one hits; who always takes one hits as often swapped."
    places = np.zeros((6, 98), bool)
    places[range(6), [3, 3, 3, 8, 8, 8]] = True
    always = np.tile(np.eye(98)[3], (6, 1))
    right, habit = (pointing_game(a, places, ["Nodule"] * 6).loc["all"] for a in (places.astype(float), always))
    assert right.hit == 1 and right.swapped == pytest.approx(.4)  # of the five others, two have it in the same place
    assert habit.hit == .5 and habit.swapped == pytest.approx(.5)


def test_a_finding_that_occurs_once_has_no_others():
    game = pointing_game(np.eye(98)[:3], np.eye(98)[:3] > 0, ["Nodule", "Scar", "Scar"])
    assert np.isnan(game.swapped["Nodule"]) and game.swapped["all"] == 0

"Ratings in RadPref's form, and Kendall's tau against its definition"
import json
from itertools import combinations
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest

from xraycap.agreement import agreement, halves, radpref_folder, raters_agreement, read_ratings, scores_each
from xraycap.findings import label_findings

REPORTS = ["Small left effusion.", "Clear lungs.", "Cardiomegaly.", "No effusion."]


@pytest.fixture
def made_up(tmp_path):
    "Four cases in the form of RadPref, three raters"
    rng, folder = np.random.default_rng(0), tmp_path / "CRIMSON" / "RadPref"
    (folder / "radiologist_annotations").mkdir(parents=True)
    cases = [{"id": f"case {i}", "ground_truth_report": text, "C1_report": text, "C2_report": REPORTS[i - 1]}
             for i, text in enumerate(REPORTS)]
    (folder / "preference_data.json").write_text(json.dumps(cases))
    for user in "123":
        said = {o["id"]: {"C1": {"rating": 5}, "C2": {"rating": int(rng.integers(1, 4))}} for o in cases}
        file = folder / "radiologist_annotations" / f"user_{user}.json"
        file.write_text(json.dumps({"user_id": user, "annotations": said}))
    return tmp_path / "CRIMSON"


def tau_b(x, y):
    signs = np.sign([[x[i] - x[j], y[i] - y[j]] for i, j in combinations(range(len(x)), 2)])
    return (signs[:, 0] * signs[:, 1]).sum() / np.sqrt(np.prod((signs != 0).sum(0)))


def test_ratings(made_up):
    rated = read_ratings(made_up)
    assert rated.shape == (8, 7) and list(rated.candidate[:2]) == ["C1", "C2"]
    assert (rated.loc[rated.candidate == "C1", ["rater 1", "rater 2", "rater 3"]] == 5).all(axis=None)
    with pytest.raises(FileNotFoundError, match="does not hold"): read_ratings(made_up / "elsewhere")
    next(made_up.rglob("user_2.json")).write_text("{}")
    with pytest.raises(ValueError, match="form"): read_ratings(made_up)


def test_from_a_folder_a_zip_or_the_environment(made_up, tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XRAYCAP_URL_RADPREF", raising=False)
    with pytest.raises(FileNotFoundError, match="XRAYCAP_URL_RADPREF"): radpref_folder()
    whole = read_ratings(radpref_folder(str(made_up)))
    with ZipFile(tmp_path / "main.zip", "w") as archive:
        for path in made_up.rglob("*.json"): archive.write(path, path.relative_to(tmp_path))
    monkeypatch.setenv("XRAYCAP_URL_RADPREF", str(tmp_path / "main.zip"))
    pd.testing.assert_frame_equal(read_ratings(radpref_folder()), whole)


def test_scores_of_single_reports():
    each = scores_each(REPORTS[:3], ["Small right effusion.", "Clear lungs.", "Clear lungs."])
    assert each["finding F1"].tolist() == [1, 1, 0] and each["finding side F1"].tolist() == [0, 1, 0]
    assert each["finding amount F1"].tolist() == [1, 1, 0] and each["BLEU-1"].tolist()[1] == pytest.approx(1)
    assert label_findings("Clear lungs.") == set()


def test_tau_by_its_definition():
    rng = np.random.default_rng(0)
    ratings = pd.Series(rng.integers(1, 6, 60))
    scores = pd.DataFrame({"a": rng.integers(0, 4, 60), "b": rng.random(60)})
    table = agreement(scores, ratings, pd.Series(np.repeat(range(30), 2)), n=200)
    for name in scores:
        tau, low, high = table.loc[name]
        assert tau == pytest.approx(tau_b(scores[name], ratings)) and low < tau < high
    assert agreement(scores[["b"]], scores.b, ratings.index.to_series(), n=5).tau["b"] == pytest.approx(1)


def test_raters_and_halves(made_up):
    rated = read_ratings(made_up)
    table = raters_agreement(rated, n=5)
    assert list(table.index) == ["rater 1", "rater 2", "rater 3"]
    assert table.tau["rater 1"] == pytest.approx(tau_b(rated["rater 1"], rated[["rater 2", "rater 3"]].mean(axis=1)))
    assert halves(rated.case).tolist() == [True, True, False, False] * 2

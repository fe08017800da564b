"Files of predictions: matched by the study, cleaned alike, in ReXrank's form; and `xraycap score` on them"
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from typer.testing import CliRunner

from xraycap.cli import app
from xraycap.predictions import clean_pairs, load_pairs, not_alike, read_reports, study_key, write_reports
from xraycap.studies import load_studies
from xraycap.text import clean_chen


def score(*args): return CliRunner().invoke(app, ["score", *map(str, args)])


@pytest.fixture
def files(tmp_path):
    def write(**texts):
        for name, text in texts.items(): (tmp_path / name.replace("_", ".")).write_text(text, encoding="utf-8")
        return [tmp_path / name.replace("_", ".") for name in texts]
    return write


@pytest.mark.parametrize("name, key", [
    ("CXR3030_IM-1405", "3030"), ("CXR3030_IM-1405-1001", "3030"), ("3030", "3030"), ("3030.0", "3030"),
    ("CXR3030", "3030"), (" cxr3030_im-1405 ", "3030"), ("CXR1_1_IM-0001-3001", "1"), ("3030_IM-1405-1001", "3030"),
    ("s50414267", "s50414267"), ("p10/s5", "p10/s5"), ("3030a", "3030a")])
def test_study_key(name, key): assert study_key(name) == key


@pytest.mark.parametrize("header", [
    "study_id,report", "dicom_id,report", "uid,findings", "ID,Report", "report,dicom_id"])
def test_columns(files, header):
    cells = {"report": "No effusion.", "findings": "No effusion."}
    row = ",".join(cells.get(name.lower(), "CXR7_IM-2263") for name in header.split(","))
    assert read_reports(*files(t_csv=f"{header}\n{row}\n")) == {"7": "No effusion."}


def test_wrong_files(files, tmp_path):
    for text, words in (("a,b\n1,2\n", "two columns"), ("uid,report\n", "holds no reports"),
                        ("uid,report\n1,a\nCXR1_IM-0001,b\n", "two different reports")):
        with pytest.raises(ValueError, match=words): read_reports(*files(t_csv=text))
    assert read_reports(*files(t_csv="uid,report\n1,a\n1,a\n")) == {"1": "a"}  # a row an image
    for text, words in (("[]", "ReXrank"), ("{", "not JSON"), ("{}", "holds no reports"),
                        ('{"1": {}}', "no text in 'model_prediction'")):
        with pytest.raises(ValueError, match=words): read_reports(*files(t_json=text))
    with pytest.raises(FileNotFoundError): read_reports(tmp_path / "no.csv")


def test_rexrank_there_and_back(files, tmp_path):
    "Made up in the form in which ReXrank gives studies out and takes predictions in"
    entry = {"key_image_path": "CXR7_IM-2263/0.png", "image_path": ["CXR7_IM-2263/0.png"],
             "report": "Findings: Clear lungs. Impression: Normal.", "section_findings": "Clear lungs.",
             "section_impression": "Normal.", "split": "test", "frontal_lateral": ["Frontal"], "context": "Cough.",
             "model_prediction": "Findings:Small left effusion.Impression:Effusion."}
    path, = files(r_json=json.dumps({"CXR7_IM-2263": entry}))
    assert read_reports(path) == {"7": "Small left effusion."}
    assert read_reports(path, "section_findings") == {"7": "Clear lungs."}
    given, = files(g_json=json.dumps({"7": {"report": entry["report"]}}))
    assert read_reports(given, "section_findings") == {"7": "Clear lungs."}
    with pytest.raises(ValueError, match="no text in 'model_prediction'"): read_reports(given)  # nobody's prediction
    studies = load_studies().head(5)
    said = [f"the lungs are clear of {i} ." for i in range(5)]
    for name in ("p.json", "p.csv"):
        write_reports(tmp_path / name, studies, said)
        assert read_reports(tmp_path / name) == dict(zip(map(str, studies.uid), said))
    entries = json.loads((tmp_path / "p.json").read_text())
    assert [o["section_findings"] for o in entries.values()] == list(studies.findings)
    assert pd.read_csv(tmp_path / "p.csv").columns.tolist() == ["study_id", "report"]
    with pytest.raises(ValueError, match=r"\.csv or \.json"): write_reports(tmp_path / "p.txt", studies, said)


def test_pairs_are_matched_and_what_is_missing_is_said(files):
    refs, hyps = files(r_csv="study_id,findings\n1,Clear.\n2,Scar.\n3,Effusion.\n",
                       h_csv="dicom_id,report\nCXR3_IM-1,effusion .\nCXR1_IM-1,clear .\nCXR9_IM-1,mass .\n")
    references, hypotheses, about, notes = load_pairs(refs, hyps, "chen")
    assert (references, hypotheses) == (["clear .", "effusion ."], ["clear .", "effusion ."])
    assert about["missing"] == ["2"] and about["studies"] == 2
    assert "1 of 3 studies" in notes[0] and "is 2." in notes[0] and "is 9." in notes[1]
    shown = score(refs, hyps, "--clean", "chen", "--json")
    assert "the first is 2." in shown.stderr and json.loads(shown.stdout)["studies"] == 2
    lines, = files(l_txt="clear .\n")
    assert "same kind of file" in score(refs, lines).stderr
    other, = files(o_csv="uid,report\ns5,clear .\n")
    assert "No study" in score(refs, other).stderr
    assert "There is no cleaning named 'soap'" in score(refs, hyps, "--clean", "soap").stderr


def test_one_file_is_scored_against_the_chen_test_part(tmp_path):
    studies = load_studies()
    test = studies[studies.split == "test"]
    write_reports(tmp_path / "p.csv", test[::-1], [clean_chen(text) for text in test.findings[::-1]])
    references, hypotheses, about, notes = load_pairs(tmp_path / "p.csv")
    assert references == hypotheses == list(test.findings.map(clean_chen)) and not notes
    assert about["clean"] == "chen" and about["studies"] == 590 and about["missing"] == []
    with pytest.raises(ValueError, match="lines have none"): load_pairs(tmp_path / "p.txt")


def test_r2gen_cuts_references_and_hides_rare_words():
    "Against R2Gen's tokenizer, in its own words"
    studies = load_studies()
    counts = pd.Series(" ".join(studies[studies.split == "train"].findings.map(clean_chen)).split()).value_counts()
    texts = list(studies[studies.split == "test"].findings)
    known = [[w if counts.get(w, 0) >= 3 else "<unk>" for w in clean_chen(text).split()][:59] for text in texts]
    references, hypotheses = clean_pairs(texts, texts, "r2gen")
    assert references == [" ".join(words) for words in known] and hypotheses == [clean_chen(t) for t in texts]


def test_not_cleaned_alike(files):
    plain, raw = ["the heart is normal .", "no effusion ."], ["The heart is normal.", "No effusion."]
    assert not not_alike(plain, plain) and not not_alike(raw, raw)
    assert "references have capital letters" in not_alike(raw, plain)
    assert "hypotheses have full stops" in not_alike(plain, [text.lower() for text in raw])
    refs, hyps = files(r_txt="\n".join(raw), h_txt="\n".join(plain))
    assert "--clean chen" in score(refs, hyps).stderr
    cleaned = score(refs, hyps, "--clean", "chen", "--json")
    assert not cleaned.stderr and json.loads(cleaned.stdout)["bleu_1"] == pytest.approx(1)


def test_what_is_not_defined_is_null_and_says_why(files):
    healthy, = files(h_txt="the heart is normal in size .\n")
    card = json.loads(score(healthy, healthy, "--json").stdout)
    assert card["bleu_4"] == pytest.approx(1)
    undefined = {"cider", "finding_f1_micro", "finding_f1_macro", "finding_side_f1_micro", "finding_amount_f1_micro"}
    assert {name for name, value in card.items() if value is None} == undefined
    assert "references that differ" in card["cider_reason"] and "No report names" in card["finding_f1_reason"]
    shown = score(healthy, healthy).stdout
    assert "undefined" in shown and "None" not in shown and card["cider_reason"] in shown
    ill, = files(i_txt="there is a small left effusion .\n")
    card = json.loads(score(healthy, ill, "--json").stdout)
    assert (card["finding_f1_micro"], card["finding_f1_macro"], card["finding_side_f1_micro"]) == (0, None, 0)
    assert "No reference names" in card["finding_f1_reason"]
    assert json.loads(score(ill, ill, "--json").stdout)["finding_side_f1_micro"] == 1


def test_what_our_models_wrote_gives_their_rows_again():
    "The files beside the notebooks against the table of results"
    written = Path(__file__).parents[1] / "nbs"
    listed = pd.read_csv(written / "results.csv", index_col=0)
    result = score(written / "predictions/attention.csv", "--json")
    card = json.loads(result.stdout)
    assert not result.stderr and (card["studies"], card["missing"]) == (590, [])
    for figure in "bleu_4", "cider", "finding_f1_micro", "distinct":
        assert card[figure] == pytest.approx(listed.loc["attention", figure], abs=1e-4)


class RadEval:
    "In the place of the package: it has one metric, and no weights for the others."
    def __init__(self, metrics, show_progress):
        if metrics != ["radgraph"]: raise OSError("We couldn't connect to the hub,\nso there are no weights.")

    def __call__(self, refs, hyps): return {"radgraph_partial": sum(map(str.__eq__, refs, hyps)) / len(refs)}


def test_clinical_metrics_that_are_there_and_those_that_are_not(files, monkeypatch):
    refs, hyps = files(r_txt="no effusion .\nclear .\n", h_txt="no effusion .\nsmall effusion .\n")
    monkeypatch.setitem(sys.modules, "radeval", SimpleNamespace(RadEval=RadEval))
    monkeypatch.setitem(sys.modules, "RadEval", None)
    result = score(refs, hyps, "--clinical", "--json")
    assert json.loads(result.stdout)["clinical"] == {"radgraph_partial": .5}
    missing = [f"{name} (OSError: We couldn't connect to the hub, so there are no weights.)"
               for name in ("CheXbert F1", "RaTEScore", "GREEN")]
    assert result.stderr == f"xraycap: Not to be had here: {', '.join(missing)}.\n"
    assert sys.modules["RadEval"].RadEval is RadEval  # the name by which its RadGraph asks for it
    assert "radgraph_partial" in score(refs, hyps, "--clinical").stdout
    assert "clinical" not in json.loads(score(refs, hyps, "--json").stdout)


def test_without_radeval_one_sentence_says_what_to_install(files, monkeypatch):
    refs, = files(r_txt="no effusion .\n")
    monkeypatch.setitem(sys.modules, "radeval", None)
    result = score(refs, refs, "--clinical")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "xraycap[clinical]" in result.stderr and "--no-deps radeval" in result.stderr

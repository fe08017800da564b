"Labels in the place of reports: read, learnt from and scored."
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score
from typer.testing import CliRunner

from xraycap.cli import app
from xraycap.encoder import load_finding_net
from xraycap.features import store_features
from xraycap.findings import label_f1
from xraycap.labels import label_codes
from xraycap.lstm import LSTMDecoder
from xraycap.mesh import FINDINGS, mesh_findings
from xraycap.models import describe, load_model, save_model
from xraycap.results import baselines, evaluate, label_card
from xraycap.studies import load_studies
from xraycap.targets import composed_reports
from xraycap.text import Vocab, clean_chen
from xraycap.training import train_captioner, without_details

NIH = ["Cardiomegaly", "Effusion", "No Finding"]


def table(folder, rows, header="frontal,labels", name="labels.csv"):
    "A table, and a noisy image for each row whose first field names one that is not there"
    for i, row in enumerate(rows):
        path = folder / row.split(",")[0]
        if path.exists() or path == folder: continue
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32), np.uint8)).save(path)
    path = folder / name
    path.write_text("\n".join([header, *rows]))
    return path


# --- names

@pytest.mark.parametrize("labels, codes", [
    ("Effusion|Infiltration", ["Pleural Effusion", "Infiltrate"]), ("Mass", ["Mass"]), ("Hernia", ["Hernia, Hiatal"]),
    ("Pleural_Thickening|pleural thickening|PLEURAL_THICKENING", ["Thickening/pleura"]), ("No Finding", ["normal"]),
    ("edema", ["Pulmonary Edema"]), (" Atelectasis | Nodule ", ["Pulmonary Atelectasis", "Nodule"]),
    ("No Finding|Support Devices", ["Support Devices"]), ("Lung Lesion", ["Nodule"]), ("no_finding", ["normal"]),
    ("Fibrosis", ["Pulmonary Fibrosis"]), ("Spine Degeneration", ["Spine/degenerative"]), ("", [])])
def test_codes_of_labels(labels, codes): assert label_codes(labels) == codes


def test_all_names_of_nih_and_chexpert_are_known():
    nih = ("Atelectasis|Cardiomegaly|Effusion|Infiltration|Mass|Nodule|Pneumonia|Pneumothorax|Consolidation|Edema|"
           "Emphysema|Fibrosis|Pleural_Thickening|Hernia")
    chexpert = ("Enlarged Cardiomediastinum|Cardiomegaly|Lung Opacity|Lung Lesion|Edema|Consolidation|Pneumonia|"
                "Atelectasis|Pneumothorax|Pleural Effusion|Pleural Other|Fracture|Support Devices")
    assert all(mesh_findings([code]) for code in label_codes(nih)) and len(label_codes(nih)) == 14
    assert len(mesh_findings(label_codes(chexpert))) == 10
    assert mesh_findings(label_codes("|".join(FINDINGS))) == set(FINDINGS)


# --- tables

def test_a_table_of_labels(tmp_path, capsys):
    rows = ["a.png,Effusion|Mass,ann,ap", "b.png,No Finding,bob,PA", "c.png,Enlarged Cardiomediastinum,cid,PA"]
    studies = load_studies(table(tmp_path, rows, "frontal,labels,patient,view"))
    assert studies.mesh.tolist() == [["Pleural Effusion", "Mass"], ["normal"], ["Mediastinum/enlarged"]]
    assert studies.findings.tolist() == [""] * 3 and studies.patient.tolist() == ["ann", "bob", "cid"]
    assert studies["view"].tolist() == ["AP", "PA", "PA"]
    assert studies.attrs["labels"] == ["Mass", "Mediastinum/enlarged", "Pleural Effusion"]
    assert capsys.readouterr().out == ""


def test_findings_and_labels(tmp_path):
    rows = ["a.png,Large heart.,Cardiomegaly", "b.png,Clear.,", "c.png,,No Finding"]
    studies = load_studies(table(tmp_path, rows, "frontal,findings,labels"))
    assert studies.mesh.tolist() == [["Cardiomegaly"], [], ["normal"]]
    assert studies.findings.tolist() == ["Large heart.", "Clear.", ""]


@pytest.mark.parametrize("rows, says", [
    (["a.png,", "b.png,Mass"], "labels.csv, line 2: this study has neither findings nor labels"),
    (["a.png,Mass", "b.png,nan"], "line 3: this study has neither"),
    (["a.png,Mass", "b.png,Mass|Masss"], "line 3: 'masss' is not known as a label of a finding; do you mean Mass"),
    (["a.png,1"], "line 2: '1' is not known as a label of a finding; NIH's, CheXpert's")])
def test_a_bad_label_is_named_with_its_line(tmp_path, rows, says):
    with pytest.raises(ValueError, match=says): load_studies(table(tmp_path, rows))
    result = CliRunner().invoke(app, ["evaluate", "--images", str(tmp_path / "labels.csv")])
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1


# --- scores

def random_card(n=200, seed=0):
    rng = np.random.default_rng(seed)
    wanted = pd.DataFrame(rng.random((n, 3)) < [.3, .1, .01], columns=["Pleural Effusion", "Cardiomegaly", "Nodule"])
    outputs = wanted + rng.normal(size=(n, 3))
    reports = [" ".join(s for s, see in (("effusion .", o.iloc[0] > .5), ("cardiomegaly .", o.iloc[1] > 1),
                                         ("catheter .", o.iloc[2] > 0)) if see) for _, o in outputs.iterrows()]
    return wanted, reports, outputs


def test_label_card_against_scikit_learn():
    wanted, reports, outputs = random_card()
    card = label_card(wanted, reports, outputs)
    assert list(card["auroc"]) == ["Pleural Effusion", "Cardiomegaly"]  # too few have the nodule
    for name, auroc in card["auroc"].items(): assert auroc == pytest.approx(roc_auc_score(wanted[name], outputs[name]))
    assert card["auroc_mean"] == pytest.approx(np.mean([*card["auroc"].values()]))
    said = np.array([["effusion" in r, "cardiomegaly" in r, False] for r in reports])  # a catheter is no label's matter
    assert card["finding_f1_micro"] == pytest.approx(f1_score(wanted, said, average="micro"))
    assert card["finding_f1_macro"] == pytest.approx(f1_score(wanted, said, average="macro", zero_division=0))
    sets = [np.array([bool(i & 1), bool(i & 2), bool(i & 4)]) for i in range(8)]
    best = max(f1_score(wanted, np.tile(s, (len(wanted), 1)), average="micro", zero_division=0) for s in sets)
    assert card["finding_f1_constant"] == pytest.approx(best)
    assert card["finding_f1_shuffled"] < card["finding_f1_micro"] - .1
    assert (card["distinct"], card["n"]) == (len(set(reports)), 200)
    json.dumps(card)


def test_label_card_where_little_is_known():
    wanted, reports, _ = random_card()
    card = label_card(wanted, reports)
    assert card["auroc"] is None and card["auroc_mean"] is None
    nobody = label_card(wanted * False == 1, ["clear ."] * len(wanted), wanted * 1.)
    assert nobody["auroc"] == {} and nobody["auroc_mean"] is None
    assert nobody["finding_f1_micro"] == nobody["finding_f1_macro"] == nobody["finding_f1_constant"] == 0
    assert label_f1(wanted, wanted) == (1, 1)
    nothing = label_card(wanted[[]], ["clear ."] * len(wanted), wanted * 1.)  # labels that name no finding of ours
    assert nothing["auroc"] == {} and nothing["finding_f1_micro"] == nothing["finding_f1_constant"] == 0


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    "36 studies that NIH's labels describe, and a model that says things by chance"
    folder = tmp_path_factory.mktemp("nih")
    rng = np.random.default_rng(0)
    rows = [f"{i}.png,{rng.choice(NIH)},{('PA', 'AP')[i % 3 == 0]},{('train', 'val', 'test')[min(i // 6, 2)]}"
            for i in range(36)]
    path = table(folder, rows, "frontal,labels,view,split")
    texts = [clean_chen(text) for text in load_studies().findings[:50]]
    vocab = Vocab.from_texts(texts, min_count=1)
    torch.manual_seed(0)
    save_model(folder / "model", LSTMDecoder(len(vocab), hidden=16, embedding_size=8), vocab,
               dict(encoder="chest", images="phantom", split="chen"))
    return path


KEYS = ["auroc", "auroc_mean", "finding_f1_micro", "finding_f1_macro", "finding_f1_shuffled", "finding_f1_constant",
        "distinct", "n"]

def test_evaluate_labels(labelled, monkeypatch):
    model = labelled.parent / "model"
    result = CliRunner().invoke(app, ["evaluate", "--images", str(labelled), "--model", str(model), "--json"])
    card = json.loads(result.stdout)
    assert list(card) == [*KEYS, "pa", "ap", "k", "images", "split"]
    assert list(card["pa"]) == list(card["ap"]) == KEYS and card["pa"]["n"] + card["ap"]["n"] == card["n"] == 24
    assert card["split"] == "own" and card["images"].endswith("/labels.csv") and card["k"] == 3

    studies = load_studies(labelled).query("split == 'test'")
    net, findings = load_finding_net()
    store = store_features(studies, net.encoder)
    x = np.stack([store[uid].astype("float32").reshape(2, 49, 1024).mean(1).ravel() for uid in studies.uid])
    logits = net.head(torch.from_numpy(x)).detach().numpy()
    for name, auroc in card["auroc"].items():
        wanted = [name in mesh_findings(mesh) for mesh in studies.mesh]
        assert auroc == pytest.approx(roc_auc_score(wanted, logits[:, findings.index(name)]), abs=.02)
    plain = CliRunner().invoke(app, ["evaluate", "--images", str(labelled), "--model", str(model)]).stdout
    assert "finding_f1_shuffled" in plain and "pa:" in plain and "Measured on the images of" in plain

    monkeypatch.setattr("xraycap.results.finding_head", lambda weights: (None, []))
    card = evaluate(model, labelled)
    assert card["auroc"] is None and card["auroc_mean"] is None and "no outputs" in card["auroc_reason"]


def test_studies_with_a_report_are_scored_by_it(labelled):
    folder = labelled.parent
    rows = ["1.png,Clear lungs. No effusion.,No Finding,test", "2.png,Large heart.,Cardiomegaly,test",
            "3.png,,Mass,test"]
    path = table(folder, rows, "frontal,findings,labels,split", "both.csv")
    card = evaluate(folder / "model", path)
    assert "bleu_4" in card and "auroc" not in card
    with pytest.raises(ValueError, match="have no reports"): baselines(labelled, part="test", encoder=None)


# --- training

def test_training_on_labels_composes_reports(labelled, tmp_path, monkeypatch):
    learnt = {}
    def few(texts, mesh, ask):
        learnt.update(texts=texts, ask=ask)
        return composed_reports(texts[:150], mesh[:150], ask)
    monkeypatch.setattr("xraycap.training.composed_reports", few)
    out = tmp_path / "model"
    train_captioner(out, decoder="lstm", images=labelled, encoder="chest", epochs=1, hidden=16)
    indiana = load_studies()
    assert learnt["texts"] == [
        without_details(clean_chen(text)) for text in indiana.findings[indiana.split == "train"]]
    assert len(learnt["ask"]) == 12 and {code for mesh in learnt["ask"] for code in mesh} <= {
        "normal", "Cardiomegaly", "Pleural Effusion"}
    assert load_model(out)[2]["images"].endswith("/labels.csv")
    assert len(describe(out, load_studies(labelled)[:2])) == 2
    with pytest.raises(ValueError, match="studies without a report"):
        train_captioner(tmp_path / "other", images=labelled, encoder="chest", composed=False)

"A training from studies to a model's folder"
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import Identity

from xraycap import models, training
from xraycap.attention import AttentionDecoder
from xraycap.batches import caption_dls
from xraycap.findings import label_findings
from xraycap.learner import caption_learner
from xraycap.lstm import masked_loss
from xraycap.mesh import mesh_findings
from xraycap.models import load_model
from xraycap.results import evaluate
from xraycap.studies import load_studies
from xraycap.text import Vocab, clean_chen, clean_findings
from xraycap.training import PointAtFindings, Recipe, case_study_recipe, cross_codes, train_captioner, without_details
from xraycap.transformer import TransformerDecoder


def test_a_recipe_takes_its_own_and_gives_the_rest_to_the_decoder():
    recipe = Recipe.of(lr=1e-3, hidden=16, sizes=dict(layers=1))
    assert (recipe.lr, recipe.sizes, recipe.decoder, recipe.bodies) == (1e-3, dict(layers=1, hidden=16), "attention", 2)
    with pytest.raises(ValueError, match="no decoder 'parrot': choose one of lstm, attention, transformer"):
        train_captioner("nowhere", decoder="parrot")
    with pytest.raises(ValueError, match="no targets 'mine': choose one of composed, consensus, own"):
        train_captioner("nowhere", targets="mine")


def test_training_on_next_to_nothing(tmp_path, few_studies, monkeypatch):
    def first(n):
        monkeypatch.setattr(training, "load_studies", lambda images, split: few_studies.groupby("split").head(n))
    first(1)
    with pytest.raises(ValueError, match="two studies at least"): train_captioner(tmp_path / "model")
    first(2)
    for decoder in models.decoder_names:
        losses = train_captioner(tmp_path / "model", decoder=decoder, epochs=1, bodies=1, crossed=0)
        assert losses.valid_loss.notna().all()


def test_a_weights_file_is_found_from_any_folder(tmp_path, few_studies, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ImageEncoder", "fused"): monkeypatch.setattr(training, name, lambda encoder: Identity())
    train_captioner("model", encoder="weights", epochs=1, bodies=1, crossed=0)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["encoder"] == str(tmp_path / "weights")
    train_captioner("model", encoder=Path("chest"), epochs=1, bodies=1, crossed=0)
    assert load_model(tmp_path / "model")[2]["encoder"] == "chest"


@pytest.mark.parametrize("decoder", models.decoder_names)
def test_training_from_studies_to_a_report(tmp_path, few_studies, decoder):
    "The whole path, not its quality."
    losses = train_captioner(tmp_path / "model", decoder=decoder, epochs=2, bs=16)
    assert len(losses) == 2 and losses.train_loss.iloc[1] < losses.train_loss.iloc[0]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    about = [config[name] for name in ("decoder", "images", "split", "encoder")]
    assert about == [decoder, "phantom", "chen", "chest"]
    assert len(config["losses"]["valid_loss"]) == 2
    card = evaluate(tmp_path / "model", k=2)
    assert (card["k"], card["images"], card["split"]) == (2, "phantom", "chen") and 0 <= card["bleu_4"] <= 1


@pytest.mark.parametrize("asked, learnt", [
    (dict(targets="own"), "own"), (dict(composed=False), "own"), (dict(targets="consensus"), "consensus")])
def test_other_texts_can_be_learnt(tmp_path, few_studies, monkeypatch, asked, learnt):
    taught = []
    def dls(studies, *args, **kwargs):
        taught.append(studies)
        return caption_dls(studies, *args, **kwargs)
    monkeypatch.setattr(training, "caption_dls", dls)
    train_captioner(tmp_path / "model", decoder="lstm", epochs=1, crossed=1, hidden=16, **asked)
    assert load_model(tmp_path / "model")[2]["targets"] == learnt
    train, val = (list(few_studies[few_studies.split == part].findings) for part in ("train", "val"))
    if learnt == "own": assert list(taught[0].findings) == [*train, *train, *val]
    else:
        assert len(taught[0]) == 3 * len(train) + len(val)  # a body more, with crossed codes
        assert set(taught[0].findings) <= {*map(clean_chen, train)}  # whole reports, also for the validation studies


@pytest.mark.parametrize("decoder, epochs", [("lstm", 20), ("attention", 50)])
def test_the_case_studys_recipe(tmp_path, few_studies, monkeypatch, decoder, epochs):
    "Its split, cleaning and texts, nothing taught beside the words, and the last epoch is kept."
    recipe = case_study_recipe(decoder)
    assert recipe["epochs"] == epochs
    for name in ("PointAtFindings", "start_from_findings", "SaveModelCallback"):
        monkeypatch.setattr(training, name, lambda *args, **kwargs: 1 / 0)
    out, shown = tmp_path / "model", {}
    def dls(*args, **kwargs):
        shown["dls"] = caption_dls(*args, **kwargs)
        return shown["dls"]
    monkeypatch.setattr(training, "caption_dls", dls)
    losses = train_captioner(out, **recipe | dict(epochs=2, bs=16))
    model, vocab, config = load_model(out)
    assert [config[name] for name in ("split", "targets", "clean")] == ["case-study", "own", "case-study"]
    assert len(shown["dls"].train_ds) == 40
    reports = load_studies("phantom", "case-study")
    reports = reports.findings[reports.split == "train"].head(40).map(clean_findings)
    assert set(vocab.itos[4:]) == set(" ".join(reports).split()) and not {"is", "of", "a"} & set(vocab.itos)
    total = words = 0
    for x, tokens_in, tokens_out in shown["dls"].valid:
        n = int((tokens_out != 0).sum())
        total, words = total + n * masked_loss(model(x, tokens_in), tokens_out).item(), words + n
    assert total / words == pytest.approx(losses.valid_loss.iloc[-1], rel=.01)  # weights are kept as half floats

    card = evaluate(out, split="case-study")
    assert card["clean"] == "case-study" and card["split"] == "case-study"
    with pytest.raises(ValueError, match="no decoder 'transformer': choose lstm or attention"):
        case_study_recipe("transformer")


@pytest.mark.parametrize("codes", [True, False])
def test_without_codes_each_study_teaches_its_own_report(tmp_path, few_studies, monkeypatch, codes):
    studies = few_studies if codes else few_studies.assign(mesh=[[] for _ in few_studies.uid])
    studies.attrs.update(few_studies.attrs)
    taught = []
    class Enough(Exception): pass
    def dls(studies, *args, **kwargs):
        taught.append(studies)
        raise Enough
    monkeypatch.setattr(training, "load_studies", lambda images, split: studies)
    monkeypatch.setattr(training, "caption_dls", dls)
    with pytest.raises(Enough): train_captioner(tmp_path / "model", decoder="lstm")
    lines = lambda texts: {line.strip() for text in texts for line in text.split(" .")}
    train, val = (list(studies[studies.split == part].findings) for part in ("train", "val"))
    if codes:
        assert len(taught[0]) == 12 * len(train) + len(val)  # two bodies with their own codes, ten with crossed ones
        assert lines(taught[0].findings) <= lines(map(clean_chen, train))
    else: assert list(taught[0].findings) == [*train, *train, *val]  # each training study in two bodies


@pytest.mark.parametrize(
    "kind,size", [(AttentionDecoder, dict(attention=16)), (TransformerDecoder, dict(layers=1, heads=2))])
@pytest.mark.parametrize("weight", [0, 1])
def test_attention_learns_to_point_at_what_a_sentence_names(weight, kind, size):
    "Each study's effusion lies at a place of its own; without the lesson nothing says so"
    vocab, text, n = Vocab("no pleural effusion lungs are clear .".split()), "pleural effusion . lungs are clear .", 48
    rng, head = np.random.default_rng(0), torch.nn.Linear(2048, 2)
    place, store = rng.integers(98, size=n), rng.normal(0, .1, (n, 98, 1024)).astype(np.float16)
    torch.nn.init.zeros_(head.weight)
    head.weight.data[1, [0, 1024]] = 1.  # the second finding's map is the first channel
    store[range(n), place, 0] += 5
    studies = pd.DataFrame(dict(uid=range(n), findings=text, split=["train"] * 40 + ["val"] * 8))
    torch.manual_seed(0)
    decoder = kind(len(vocab), hidden=32, embedding_size=8, dropout=0., **size)
    learn = caption_learner(caption_dls(studies, store, vocab, bs=8), decoder, lr=1e-2)
    point = PointAtFindings(head, ["Cardiomegaly", "Pleural Effusion"], vocab, weight)
    with learn.no_bar(), learn.no_logging(): learn.fit(20, cbs=point)
    tokens = torch.tensor([vocab.encode(text)[:-2]] * 8)
    logits, attention = decoder.forward_with_attention(torch.tensor(store[40:]).float(), tokens)
    share = attention[range(8), :, place[40:]].mean(0)  # of each word, on the finding's place
    assert logits.shape == (8, 7, len(vocab)) and torch.allclose(attention.sum(-1), torch.ones(8, 7))
    assert (share[:3] > .4).all() if weight else (share[:3] < .1).all()


# --- real radiographs that have labels

@pytest.mark.parametrize("said, kept", [
    ("there is a small left pleural effusion .", "there is a pleural effusion ."),
    ("a large effusion is seen at the right lung base . no pneumothorax .", "an effusion is seen . no pneumothorax ."),
    ("mild bilateral interstitial edema .", "interstitial edema ."),
    ("the heart is enlarged .", "the heart is enlarged ."),
    ("in the left upper lobe there is a 10 x 12 mm nodule projecting over the rib .", "there is a nodule ."),
    ("the effusion is small .", ""), ("the nodule is unchanged .", ""), ("there may be cardiomegaly .", ""),
    ("the right lung is clear . both lungs are clear . the lungs are clear .", "the lungs are clear ."), ("", "")])
def test_details_that_a_label_does_not_tell(said, kept): assert without_details(said) == kept


def test_no_details_are_left_in_the_indiana_reports():
    studies = load_studies()
    words = {word for text in studies.findings.map(clean_chen) for word in without_details(text).split()}
    details = "right left bilateral small large moderate mild tiny severe lobe upper lower base bases apex mm unchanged"
    assert not words & {*details.split()} and {"effusion", "cardiomegaly", "nodule", "lungs", "heart"} <= words


@pytest.fixture
def radiographs(tmp_path, few_studies):
    "A labelled table, and the finding in it, one that the few reports can name without details."
    texts = few_studies.findings[few_studies.split == "train"].map(clean_chen).map(without_details)
    lines = [line for text in texts for line in text.split(" . ") if len(line.split()) > 3]
    finding, = Counter(name for line in lines for name in label_findings(line)).most_common(1)[0][:1]
    rows = [f"{i}.png,{finding if i % 2 else 'No Finding'},{'train' if i < 8 else 'val'}" for i in range(12)]
    for i in range(12): (tmp_path / f"{i}.png").touch()
    (tmp_path / "nih.csv").write_text("\n".join(["frontal,labels,split", *rows]))
    return tmp_path / "nih.csv"


def test_radiographs_are_learnt_beside_simulated_studies(tmp_path, few_studies, radiographs, monkeypatch):
    taught = []
    def dls(studies, *args, **kwargs):
        taught.append(studies)
        return caption_dls(studies, *args, **kwargs)
    monkeypatch.setattr(training, "caption_dls", dls)
    small = dict(decoder="lstm", epochs=1, crossed=1, hidden=16)
    train_captioner(tmp_path / "model", radiographs=radiographs, positives=3, **small)
    config = load_model(tmp_path / "model")[2]
    assert (config["images"], config["radiographs"]) == ("phantom", {"table": "nih", "n": 8})
    simulated, real = taught[0][taught[0].uid >= 0], taught[0][taught[0].uid < 0]
    assert len(simulated) == simulated.uid.nunique() == 3 * 40 + 10 and real.uid.nunique() == 12
    assert set(-1 - real.uid) == set(load_studies(radiographs).uid)
    times = real.groupby("uid").agg(n=("uid", "size"), mesh=("mesh", "first"), split=("split", "first"))
    assert times.n.tolist() == [1 if mesh == ["normal"] else 3 for mesh in times.mesh]
    assert times.split.value_counts().to_dict() == {"train": 8, "val": 4}
    for mesh, text in zip(real.mesh, real.findings):
        assert label_findings(text) == mesh_findings(mesh) and text == without_details(text) != ""

    train_captioner(tmp_path / "model", **small)
    assert "radiographs" not in load_model(tmp_path / "model")[2]
    pd.testing.assert_series_equal(taught[1].findings, simulated.findings)  # simulated studies are taught as before


def test_a_table_that_is_not_one_of_radiographs(tmp_path, radiographs):
    with pytest.raises(ValueError, match="nih.csv has studies without a report"):
        train_captioner(tmp_path / "model", radiographs=radiographs, composed=False)
    (tmp_path / "reports.csv").write_text("frontal,findings\n0.png,Clear.\n1.png,Clear lungs.\n2.png,Large heart.\n")
    with pytest.raises(ValueError, match="reports.csv has no study with labels in the part train"):
        train_captioner(tmp_path / "model", radiographs=tmp_path / "reports.csv")


def short_reports(monkeypatch, findings):
    "A table of one's own with these findings, the last two for validation."
    studies = pd.DataFrame(dict(
        uid=range(len(findings)), findings=findings, mesh=[[] for _ in findings], frontal="a.png", lateral="a.png",
        split=["train"] * (len(findings) - 2) + ["val"] * 2))
    studies.attrs.update(images="clinic/data.csv", split="own")
    monkeypatch.setattr(training, "load_studies", lambda *args: studies)
    for name in ("ImageEncoder", "fused"): monkeypatch.setattr(training, name, lambda encoder: Identity())
    monkeypatch.setattr(training, "default_weights", lambda images: "xrv-nih")
    return studies


SHORT = ["Pleural effusion left.", "Normal cardiac silhouette.", "Opacity at right base.", "Clear lungs.",
         "Diffuse emphysema.", "Old rib fracture.", "Thoracic scoliosis.", "Central catheter."]

def test_a_small_table_has_words_to_learn(tmp_path, few_studies, monkeypatch, capsys):
    short_reports(monkeypatch, SHORT)
    train_captioner(tmp_path / "model", images="data.csv", decoder="lstm", epochs=1)
    said = capsys.readouterr().out
    assert "words are learnt that occur 1 times or more: those that occur 3 times make up only 0% of them" in said
    assert {"effusion", "emphysema", "opacity"} <= set(load_model(tmp_path / "model")[1].itos)
    short_reports(monkeypatch, ["the heart is large ."] * 10)
    train_captioner(tmp_path / "model", images="data.csv", decoder="lstm", epochs=1)
    assert "are few" not in capsys.readouterr().out


def test_reports_without_words_are_refused_before_any_work(tmp_path, monkeypatch):
    short_reports(monkeypatch, [".", ". .", "...", "."])
    monkeypatch.setattr(training, "readable_features", lambda *args, strict: 1 / 0)
    with pytest.raises(ValueError, match="data.csv hold no words to learn"):
        train_captioner(tmp_path / "model", images="data.csv")


@pytest.mark.parametrize("failed", [[1], [0, 1, 2, 3, 4], [6, 7]])
def test_studies_that_cannot_be_read_are_left_out(tmp_path, monkeypatch, failed):
    short_reports(monkeypatch, SHORT)
    class Enough(Exception): pass
    shown, asked = [], []
    def readable(studies, encoder, strict):
        asked.append(strict)
        rows = {uid: np.zeros((98, 1024), np.float16) for uid in studies.uid if uid not in failed}
        return rows, pd.DataFrame({"uid": failed})
    def dls(studies, *args, **kwargs):
        shown.extend(studies.uid)
        raise Enough
    monkeypatch.setattr(training, "readable_features", readable)
    monkeypatch.setattr(training, "caption_dls", dls)
    few = len(failed) > 1
    with pytest.raises(ValueError if few else Enough, match="Too few studies of clinic/data.csv" if few else None):
        train_captioner(tmp_path / "model", images="data.csv", decoder="lstm", encoder=None, strict=False)
    assert shown == ([] if few else [0, *range(2, 8)]) and asked == [False]


def test_crossed_codes_are_codes_of_two_studies():
    mesh = [[f"a{i}", f"b{i}", f"c{i}"] for i in range(200)] + [["normal"]] * 100
    crossed = cross_codes(mesh, 7)
    assert crossed == cross_codes(mesh, 7) != cross_codes(mesh, 8) and len(crossed) == len(mesh)
    for own, new in zip(mesh, crossed):
        others = {code[1:] for code in set(new) - set(own) - {"normal"}}
        assert len(others) <= 1 and ("normal" not in new or new == ["normal"])  # the rest comes from one other study
    kept = np.mean([code in new for own, new in zip(mesh[:200], crossed) for code in own])
    assert .42 < kept < .58  # by a coin: 600 throws, 4 standard deviations

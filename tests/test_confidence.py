"A probability for each sentence: from the decoder's words and the encoder's outputs, calibrated"
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from xraycap.attention import AttentionDecoder
from xraycap.captioner import Captioner, Report, example_study, report_figure, sentence_maps
from xraycap.cli import app
from xraycap.confidence import (
    FACTS, calibration_error, confidence_of, fit_confidence, is_right, judged_sentences, report_confidence, said_logp,
    sentence_evidence, sentence_spans)
from xraycap.fast import beam_search, fast_decoder
from xraycap.findings import denied_findings
from xraycap.lstm import LSTMDecoder
from xraycap.text import Vocab, sentences
from xraycap.transformer import TransformerDecoder


@pytest.mark.parametrize("kind", [AttentionDecoder, LSTMDecoder, TransformerDecoder])
def test_words_read_off_again_add_up_to_what_the_search_found(kind):
    torch.manual_seed(0)
    decoder = fast_decoder(kind(20, hidden=16, embedding_size=8).eval())
    shape = (2048,) if decoder.pooled else (98, 1024)
    features = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    found = beam_search(decoder, features, k=2, max_len=9)
    logp = said_logp(decoder, features, [best.tokens for best in found])
    for best, words in zip(found, logp):
        assert len(words) == len(best.tokens)
        if len(words) == 9: assert words.sum() == pytest.approx(best.logp, abs=1e-3)  # no end was predicted
        else: assert words.sum() >= best.logp - 1e-3
    assert not len(said_logp(decoder, features[:1], [[]])[0])


def test_spans_are_the_sentences():
    words = ". the heart is normal . . no effusion".split()
    assert [" ".join(words[span]) for span in sentence_spans(words)] == ["the heart is normal .", "no effusion"]
    assert len(sentence_spans(words)) == len(sentences(" ".join(words))) and sentence_spans([]) == []


@pytest.mark.parametrize("sentence, denied", [
    ("no pneumothorax or pleural effusion .", {"Pneumothorax", "Pleural Effusion", "Blunted Costophrenic Angle"}),
    ("The heart is normal in size.", {"Cardiomegaly"}), ("the heart is enlarged .", set()),
    ("there is a possible small pneumothorax .", set()), ("the mediastinum is stable .", set()),
    ("bony structures are intact .", {"Fracture"}),
    ("low lung volumes without pneumothorax .", {"Pneumothorax"})])
def test_what_a_sentence_denies(sentence, denied): assert denied_findings(sentence) == denied


def test_evidence_is_that_of_the_weakest_part():
    outputs = {"Pneumothorax": -3., "Pleural Effusion": 1., "Hypoinflation": 2., "Blunted Costophrenic Angle": -5.}
    assert sentence_evidence("no pneumothorax .", outputs) == 3
    assert sentence_evidence("low lung volumes without pneumothorax .", outputs) == 2
    assert sentence_evidence("no pneumothorax or pleural effusion .", outputs) == -1
    assert sentence_evidence("no pneumothorax .", {}) == 0
    assert sentence_evidence("stable .", outputs) is None


def test_right_and_wrong():
    ill = {"Pleural Effusion"}
    assert is_right("small effusion .", ill) and not is_right("effusion and atelectasis .", ill)
    assert is_right("no pneumothorax .", ill) and not is_right("no pleural effusion .", ill)
    assert is_right("stable .", ill) is None and is_right("no pneumothorax .", ill, ill) is None
    assert is_right("effusion and atelectasis .", ill, {"Pleural Effusion", "Nodule"})


def test_calibration_error_by_its_definition():
    rng = np.random.default_rng(0)
    promised, right = rng.random(500), rng.random(500) < .4
    error = 0
    for low in range(10):
        here = (promised >= low / 10) & (promised < (low + 1) / 10)
        if here.any(): error += here.mean() * abs(promised[here].mean() - right[here].mean())
    assert calibration_error(promised, right) == pytest.approx(error)
    assert calibration_error([1., 0.], [True, False]) == 0 and calibration_error([1.], [False]) == 1


def test_the_fit_is_scikit_learns():
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"logp": -rng.exponential(.3, 400), "evidence": rng.normal(size=400)})
    table["names"] = rng.random(400) < .5
    table["right"] = (rng.random(400) < .6).astype(float)
    facts = table[FACTS].to_numpy(float)
    theirs = LogisticRegression().fit(facts, table.right)
    ours = confidence_of(table[FACTS], fit_confidence(table))
    np.testing.assert_allclose(ours, theirs.predict_proba(facts)[:, 1], atol=1e-4)
    holes = pd.concat([table, pd.DataFrame({"logp": [-1.], "evidence": [np.nan], "names": [0.], "right": [np.nan]})])
    assert fit_confidence(holes) == fit_confidence(table)
    assert fit_confidence(table[table.right == 1]) is None and fit_confidence(table[:0]) is None


def test_the_lower_of_two_kinds_of_images_counts():
    words, logp = "no effusion . stable . no nodule .".split(), np.full(8, -.5)
    found = report_confidence(words, logp, {"Pleural Effusion": -2.}, {"a": [0, 1, 0, 0], "b": [0, 0, 0, 1]})
    assert found == [pytest.approx(1 / (1 + np.exp(-1)), abs=1e-3), None, .5]  # 0 for a nodule: nothing is known of it
    assert report_confidence(words, logp, {}, None) is None is report_confidence(words, logp, {}, {})


def test_judged_sentences(few_studies):
    vocab = Vocab.from_texts(["no pleural effusion . the heart is enlarged ."])
    torch.manual_seed(3)
    decoder = LSTMDecoder(len(vocab), hidden=16, embedding_size=8).eval()
    studies, rng = few_studies[few_studies.split == "test"], np.random.default_rng(0)
    store = {uid: rng.normal(size=(98, 1024)).astype("float32") for uid in studies.uid}
    table = judged_sentences(decoder, vocab, "chest", studies, store, k=2, bs=5)
    assert set(table.uid) <= set(studies.uid) and (table.logp < 0).all()
    wanted = dict(zip(studies.uid, studies.mesh))
    from xraycap.mesh import mesh_findings
    for row in table.itertuples():
        right = is_right(row.sentence, mesh_findings(wanted[row.uid]))
        assert np.isnan(row.right) if right is None else row.right == right
    empty = judged_sentences(decoder, vocab, "chest", studies[:0], store)
    assert len(empty) == 0 and fit_confidence(empty) is None


def made_up():
    words = "the heart is normal . stable . no effusion .".split()
    views = tuple(np.random.default_rng(i).integers(0, 256, (224, 224), dtype="uint8") for i in range(2))
    attention = np.random.default_rng(2).dirichlet(np.ones(98), len(words))
    return Report(words, -5., attention, views, "mine", "phantom", .1, confidence=[.9, None, .4])


def test_doubtful_sentences_are_left_out():
    report = made_up()
    sure = report.surer_than(.6)
    assert sure.sentences == ["The heart is normal."] and sure.confidence == [.9] and sure.left_out == 2
    np.testing.assert_array_equal(sure.attention, report.attention[:5])
    assert len(sentence_maps(sure)) == 1 and sure.as_dict()["left_out"] == 2 and report.left_out == 0
    assert report.surer_than(.4).sentences == ["The heart is normal.", "No effusion."]
    assert replace(report, attention=None).surer_than(.6).attention is None
    nothing = report.surer_than(.95)
    assert nothing.sentences == [] and nothing.left_out == 3
    report_figure(nothing)
    with pytest.raises(ValueError, match="'mine' was saved without"): replace(report, confidence=None).surer_than(.5)


def test_the_picture_says_how_sure():
    titles = [ax.get_title() for ax in report_figure(made_up()).axes]
    assert "90% sure" in titles[1] and "sure" not in titles[2] and "40% sure" in titles[3]


@pytest.mark.parametrize("model", ["attention", "lstm", "transformer"])
def test_shipped_models_say_how_sure_they_are(model):
    captioner, example = Captioner.load(model), example_study()
    kinds = captioner.about["confidence"]
    assert len(kinds) == 2 and "phantom" in kinds and all(len(numbers) == 4 for numbers in kinds.values())
    report = captioner.report(example["frontal"], example["lateral"])
    assert len(report.confidence) == len(report.sentences)
    assert all(sure is None or 0 <= sure <= 1 for sure in report.confidence)
    assert json.loads(json.dumps(report.as_dict()))["confidence"] == report.confidence


def run(*args): return CliRunner().invoke(app, ["report", *map(str, args)])


def test_the_command_leaves_out_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Captioner, "report", lambda self, *views, **how: made_up())
    out = "--out", tmp_path
    plain = run(*out).stdout
    assert plain.startswith("The heart is normal. (90%)\nStable.\nNo effusion. (40%)\n\n")
    some = run(*out, "--min-confidence", .6)
    left = "2 of 3 sentences are left out: the model is not 60% sure of them."
    assert some.stdout.startswith(f"The heart is normal. (90%)\n{left}\n\n")
    none = run(*out, "--min-confidence", .99)
    assert none.stdout.startswith("All 3 sentences are left out: the model is not 99% sure of them.\n\n")
    said = json.loads(run(*out, "--min-confidence", .6, "--json").stdout)
    assert said["sentences"] == ["The heart is normal."] and (said["confidence"], said["left_out"]) == ([.9], 2)
    assert run(*out, "--min-confidence", 2).exit_code == 2


def test_a_model_without_confidence_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Captioner, "report", lambda self, *views, **how: replace(made_up(), confidence=None))
    result = run("--out", tmp_path, "--min-confidence", .6)
    assert result.exit_code == 2 and "without a measure of confidence" in result.stderr
    assert run("--out", tmp_path).stdout.startswith("The heart is normal.\nStable.\n")

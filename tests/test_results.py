"The score card, the table of results and what is sure about it"
import json

import numpy as np
import pytest
import torch

from xraycap.attention import AttentionDecoder
from xraycap.findings import finding_f1
from xraycap.lstm import LSTMDecoder
from xraycap.metrics import corpus_bleu
from xraycap.models import describe, save_model
from xraycap.predictions import read_reports
from xraycap.results import baselines, evaluate, findings_table, paired_bootstrap, results_table, score_card
from xraycap.studies import load_studies
from xraycap.text import Vocab, clean_chen

texts = ["the heart is normal in size .", "the lungs are clear .", "there is a left pleural effusion ."]
about = dict(encoder="chest", images="phantom", split="chen")


def test_score_card():
    card = score_card(texts, texts)
    assert card.keys() - {"meteor"} == {
        "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "finding_f1_micro", "finding_f1_macro",
        "finding_side_f1_micro", "finding_amount_f1_micro", "distinct", "bleu_4_shuffled", "bleu_4_low", "bleu_4_high"}
    assert card["bleu_4"] == card["rouge_l"] == pytest.approx(1)
    assert card["distinct"] == 3 and card["bleu_4_shuffled"] < 1
    assert card["finding_side_f1_micro"] == 1 and score_card(texts, [t.replace("left", "right") for t in texts])[
        "finding_side_f1_micro"] == 0
    json.dumps(card)
    with pytest.raises(ValueError, match="3 references and 2"): score_card(texts, texts[:2])
    with pytest.raises(ValueError, match="0 references"): score_card([], [])


def test_baselines_take_nothing_from_the_test_part():
    rows = baselines(encoder=None)
    assert {len(r) for r in rows.values()} == {590}
    assert len(set(rows["best constant"])) == len(set(rows["most common report"])) == 1
    assert len(set(rows["another patient's report"])) > 100
    studies = load_studies()
    train, test = (set(studies.findings[studies.split == part].map(clean_chen)) for part in ("train", "test"))
    assert test - train  # were the test part read, its own texts would be among another patient's
    for texts in rows.values(): assert set(texts) <= train


def test_each_row_of_the_table_is_what_evaluate_and_others_measure(tmp_path, few_studies):
    vocab, models = Vocab.from_texts(few_studies.findings.map(clean_chen)), {}
    for name, kind in {"LSTM": LSTMDecoder, "attention": AttentionDecoder}.items():
        torch.manual_seed(len(models))
        models[name] = tmp_path / name
        save_model(models[name], kind(len(vocab), hidden=16, embedding_size=8), vocab, about)
    test = few_studies[few_studies.split == "test"]
    references = list(test.findings.map(clean_chen))
    said = baselines(encoder=None) | {name: describe(folder, test, k=2) for name, folder in models.items()}
    table = results_table(references, said)
    assert list(table.index) == list(said) and table.columns.name == "simulated images"
    assert table.distinct.dtype == int
    assert results_table(references, {"a": references}, images="openi").columns.name != "simulated images"
    for name, folder in models.items():
        card = evaluate(folder, k=2, predictions=tmp_path / f"{name}.json")
        assert list(read_reports(tmp_path / f"{name}.json").values()) == said[name]
        assert table.loc[name].to_dict() == {figure: card[figure] for figure in table.columns}
    from nltk.translate.bleu_score import corpus_bleu as nltk_bleu
    for name, texts in said.items():
        theirs = nltk_bleu([[r.split()] for r in references], [h.split() for h in texts], weights=(1,))
        assert table.loc[name, "bleu_1"] == pytest.approx(theirs, abs=1e-9)
        assert table.loc[name, "distinct"] == len({*texts})
        assert table.loc[name, "finding_f1_micro"] == finding_f1(references, texts)[0]


def test_paired_bootstrap_draws_the_same_studies_for_both():
    "Against the definition: draw, score both with `corpus_bleu`, subtract."
    rng = np.random.default_rng(1)
    words = "the heart is normal lungs are clear no effusion left right .".split()
    references = [" ".join(rng.choice(words, 12)) for _ in range(30)]
    def noisy(share): return [" ".join(w if rng.random() > share else "large" for w in r.split()) for r in references]
    ours, theirs = noisy(.05), noisy(.3)
    difference, low, high = paired_bootstrap(references, ours, theirs)
    assert difference == pytest.approx(corpus_bleu(references, ours)[3] - corpus_bleu(references, theirs)[3])
    assert low < difference < high
    draws = []
    for _ in range(400):
        rows = rng.integers(0, 30, 30)
        drawn = [references[i] for i in rows]
        one, other = (corpus_bleu(drawn, [texts[i] for i in rows])[3] for texts in (ours, theirs))
        draws.append(one - other)
    by_hand = np.percentile(draws, [2.5, 97.5])
    assert [low, high] == pytest.approx(by_hand.tolist(), abs=.2 * (by_hand[1] - by_hand[0]))
    assert paired_bootstrap(references, theirs, ours) == pytest.approx((-difference, -high, -low))
    with pytest.raises(ValueError, match="30 references and 29"): paired_bootstrap(references, ours, theirs[1:])


def test_findings_table_by_hand():
    references = ["small effusion . cardiomegaly .", "normal .", "effusion ."]
    table = findings_table(references, ["effusion .", "effusion .", "no effusion . scoliosis ."])
    assert table.index[0] == "Pleural Effusion" and table.loc["Pleural Effusion"].tolist() == [2, 2, 1, .5, .5, .5]
    assert table.loc["Cardiomegaly", ["wanted", "said", "right", "recall"]].tolist() == [1, 0, 0, 0]
    assert table.loc["Scoliosis", ["wanted", "said", "right", "precision"]].tolist() == [0, 1, 0, 0]
    assert np.isnan(table.precision["Cardiomegaly"]) and np.isnan(table.recall["Scoliosis"])
    assert table[["wanted", "said", "right"]].sum().tolist() == [3, 3, 1]

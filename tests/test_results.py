"Saved models, the score card, and a training from studies to a folder."
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

import xraycap
from xraycap import files, metrics, models, targets, training
from xraycap.attention import AttentionDecoder
from xraycap.batches import caption_dls
from xraycap.lstm import LSTMDecoder, caption_learner
from xraycap.findings import finding_f1
from xraycap.metrics import corpus_bleu
from xraycap.mesh import FINDINGS
from xraycap.models import check_out, describe, find_model, generate, load_model, save_model
from xraycap.results import baselines, evaluate, findings_table, paired_bootstrap, results_table, score_card
from xraycap.targets import composed_reports, consensus_reports, report_weights
from xraycap.training import PointAtFindings, cross_codes, train_captioner
from xraycap.studies import load_studies
from xraycap.text import Vocab, clean_chen
from xraycap.transformer import TransformerDecoder

texts = ["the heart is normal in size .", "the lungs are clear .", "there is a left pleural effusion ."]
about = dict(encoder="phantom", images="phantom", split="chen")


def small(kind, vocab): return kind(len(vocab), hidden=16, embedding_size=8)


@pytest.mark.parametrize("kind", models.decoder_names.values())
def test_a_model_comes_back_from_its_folder(tmp_path, kind):
    vocab = Vocab.from_texts(texts)
    save_model(tmp_path / "deep" / "model", small(kind, vocab), vocab, about)
    decoder, words, config = load_model(tmp_path / "deep" / "model")
    assert type(decoder) is kind and words.itos == vocab.itos and config["images"] == "phantom" and not decoder.training
    assert {p.name for p in (tmp_path / "deep" / "model").iterdir()} == {"config.json", "vocab.json", "model.safetensors"}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model"]
    save_model(tmp_path / "again", decoder, words, about)
    twice = load_model(tmp_path / "again")[0].state_dict()
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, twice[name]), name  # half precision is reached once, then nothing changes
        assert tensor.dtype == torch.float32


def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    vocab = Vocab.from_texts(texts)
    save_model(tmp_path / "model", small(AttentionDecoder, vocab), vocab, about)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    def full(*args): raise OSError("No space left on device")
    monkeypatch.setattr(models, "save", full)
    with pytest.raises(OSError): save_model(tmp_path / "model", small(AttentionDecoder, vocab), vocab, about)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_saving_does_not_replace_other_things(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="something other than a model"): check_out(tmp_path)
    with pytest.raises(ValueError, match="something other than a model"): check_out(tmp_path / "thesis.tex")
    assert check_out(tmp_path / "new") == tmp_path / "new"


def test_a_place_that_cannot_be_saved_into_is_known_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="the folder you are in"): check_out(".")
    with pytest.raises(ValueError, match="Nothing can be written into .*file"): train_captioner(tmp_path / "file" / "model")
    check_out("deep/er/model")
    assert not (tmp_path / "here" / "deep").exists()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match="Nothing can be written into"): check_out(tmp_path / "model")


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x80\x04."])
def test_a_damaged_model_is_a_sentence(tmp_path, name, content):
    vocab = Vocab.from_texts(texts)
    save_model(tmp_path / "model", small(AttentionDecoder, vocab), vocab, about)
    (tmp_path / "model" / name).unlink()
    if content is not None: (tmp_path / "model" / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match="model"): load_model(tmp_path / "model")


def test_a_link_to_a_model_stays_a_link(tmp_path):
    vocab = Vocab.from_texts(texts)
    save_model(tmp_path / "model", small(AttentionDecoder, vocab), vocab, about)
    (tmp_path / "link").symlink_to(tmp_path / "model")
    save_model(tmp_path / "link", small(LSTMDecoder, vocab), vocab, about)
    assert (tmp_path / "link").is_symlink() and type(load_model(tmp_path / "model")[0]) is LSTMDecoder


def test_parts_of_two_models_are_no_model(tmp_path):
    vocab = Vocab.from_texts(texts)
    save_model(tmp_path / "model", small(AttentionDecoder, vocab), vocab, about)
    Vocab.from_texts(texts[:1]).save(tmp_path / "model" / "vocab.json")
    with pytest.raises(ValueError, match="model.*cannot be opened"): load_model(tmp_path / "model")
    with pytest.raises(ValueError, match="encoder and images"): save_model(tmp_path / "model", small(AttentionDecoder, vocab), vocab, dict(images="phantom"))
    save_model(tmp_path / "model", small(AttentionDecoder, vocab), vocab, about)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "encoder"}))
    with pytest.raises(ValueError, match="model.*cannot be opened"): load_model(tmp_path / "model")


def test_a_pickle_is_not_opened(tmp_path):
    vocab, canary = Vocab.from_texts(texts), tmp_path / "canary"
    class Attack:
        def __reduce__(self): return open, (str(canary), "w")
    save_model(tmp_path / "model", small(AttentionDecoder, vocab), vocab, about)
    torch.save(Attack(), tmp_path / "model" / "model.safetensors")
    with pytest.raises(ValueError): load_model(tmp_path / "model")
    assert not canary.exists()


def test_generate_does_not_depend_on_the_batch():
    vocab, store = Vocab.from_texts(texts), {u: np.random.default_rng(u).normal(size=(98, 1024)).astype("float16") for u in range(5)}
    for kind in models.decoder_names.values():
        torch.manual_seed(0)
        decoder = small(kind, vocab).eval()
        assert generate(decoder, vocab, store, list(store), bs=5) == generate(decoder, vocab, store, list(store), bs=2)


def test_score_card():
    card = score_card(texts, texts)
    assert card.keys() - {"meteor"} == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "finding_f1_micro", "finding_f1_macro",
                           "distinct", "bleu_4_shuffled", "bleu_4_low", "bleu_4_high"}
    assert card["bleu_4"] == card["rouge_l"] == pytest.approx(1) and card["distinct"] == 3 and card["bleu_4_shuffled"] < 1
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


@pytest.fixture
def few_studies(monkeypatch):
    "The results module on 40 training, 10 validation and 12 test studies, with random features."
    from xraycap.studies import load_studies as real
    def few(images, split):
        studies = real(images, split)
        few = pd.concat([studies[studies.split == part].head(n) for part, n in (("train", 40), ("val", 10), ("test", 12))])
        few.attrs.update(studies.attrs)
        return few
    def noise(studies, encoder): return {u: np.random.default_rng(u).normal(size=(98, 1024)).astype("float16") for u in studies.uid}
    monkeypatch.setattr(training, "load_studies", few)
    monkeypatch.setattr(training, "store_features", noise)
    return few("phantom", "chen")


def test_training_on_next_to_nothing(tmp_path, few_studies, monkeypatch):
    def first(n): monkeypatch.setattr(training, "load_studies", lambda images, split: few_studies.groupby("split").head(n))
    first(1)
    with pytest.raises(ValueError, match="two studies at least"): train_captioner(tmp_path / "model")
    first(2)
    for decoder in models.decoder_names: assert train_captioner(tmp_path / "model", decoder=decoder, epochs=1, bodies=1, crossed=0).valid_loss.notna().all()


def test_a_weights_file_is_found_from_any_folder(tmp_path, few_studies, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "CheXNet", lambda weights: None)
    train_captioner("model", encoder="weights", epochs=1, bodies=1, crossed=0)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["encoder"] == str(tmp_path / "weights")
    train_captioner("model", encoder=Path("phantom"), epochs=1, bodies=1, crossed=0)
    assert load_model(tmp_path / "model")[2]["encoder"] == "phantom"


@pytest.mark.parametrize("decoder", models.decoder_names)
def test_training_from_studies_to_a_report(tmp_path, few_studies, decoder):
    "The whole path, not its quality."
    losses = train_captioner(tmp_path / "model", decoder=decoder, epochs=2, bs=16)
    assert len(losses) == 2 and losses.train_loss.iloc[1] < losses.train_loss.iloc[0]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["decoder"], config["images"], config["split"], config["encoder"]) == (decoder, "phantom", "chen", "phantom")
    assert len(config["losses"]["valid_loss"]) == 2
    card = evaluate(tmp_path / "model", k=2)
    assert (card["k"], card["images"], card["split"]) == (2, "phantom", "chen") and 0 <= card["bleu_4"] <= 1


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
    if codes: assert lines(taught[0].findings) <= lines(map(clean_chen, train)) and len(taught[0]) == 12 * len(train) + len(val)
    if not codes: assert list(taught[0].findings) == [*train, *train, *val]  # each training study in two bodies


said = ["the lungs are clear . heart size is normal . no pleural effusion ."] * 4 + [
    "there is a small left pleural effusion . heart size is normal .", "there is a large right pleural effusion . heart size is normal .",
    "the heart is enlarged . the lungs are clear . no pleural effusion ."]
coded = [["normal"]] * 4 + [["Pleural Effusion/left/small"], ["Pleural Effusion/right/large"], ["Cardiomegaly"]]


@pytest.mark.parametrize("codes,must,may_not", [
    ("normal", {"heart size is normal .", "the lungs are clear ."}, {"left", "right", "enlarged"}),
    ("Pleural Effusion/left/small", {"there is a small left pleural effusion ."}, {"right", "no pleural effusion"}),
    ("Pleural Effusion/right", {"there is a large right pleural effusion ."}, {"left", "no pleural effusion"}),
    ("Cardiomegaly", {"the heart is enlarged ."}, {"heart size is normal", "left", "right"}),
    ("Cardiomegaly;Pleural Effusion/left", {"the heart is enlarged .", "there is a small left pleural effusion ."}, {"heart size is normal", "no pleural effusion"}),  # nobody had both
])
def test_a_composed_report_says_what_is_there_and_denies_none_of_it(codes, must, may_not):
    composed, = composed_reports(said, coded, [codes.split(";")])
    assert all(line in composed for line in must) and not any(words in composed for words in may_not), composed
    lines = [f"{line} ." for line in composed.removesuffix(" .").split(" . ")]
    assert len(set(lines)) == len(lines) and set(lines) <= {line for text in said for line in targets._lines(text)}


def test_a_composed_report_is_the_best_choice_of_sentences_there_is():
    "Against every set of sentences that speaks of no subject twice"
    compose, wanted = targets._Composer(said), {"Pleural Effusion"}
    weights, = report_weights(coded, [["Pleural Effusion/left/small"]])
    gain = compose.known @ weights / targets._precision[compose.order]
    names = 20 * (compose.named @ np.where(np.isin(FINDINGS, list(wanted)), 1, -1))
    has = Counter(gram for text in said for gram in metrics.ngrams(text))  # in how many texts
    def rare(text, n): return {g: np.log(len(said) / has[g]) for g in metrics.ngrams(text) if g in has and len(g[0]) == n}
    def cosine(one, other, n):
        x, y = rare(one, n), rare(other, n)
        return sum(x[g] * y.get(g, 0) for g in x) / max(1e-9, np.linalg.norm([*x.values()]) * np.linalg.norm([*y.values()]))
    def allowed(chosen): return (compose.about[chosen].sum(0) <= 1).all() and not any("no pleural" in compose.lines[i] for i in chosen)
    sets = [list(c) for n in range(1, 5) for c in combinations(range(len(compose.lines)), n) if allowed(list(c))]
    def worth(chosen):
        grams = metrics.ngrams(compose.text(chosen))
        bleu = sum((gain[compose.number[g]] if g in compose.number else 0) - targets._price[len(g[0]) - 1] for g in grams)
        alike = np.mean([[cosine(compose.text(chosen), text, n) for n in range(1, 5)] for text in said], 1) @ weights
        i = [compose.number[g] for g in grams if g in compose.number]
        near, size = (np.bincount(compose.order[i], x[i], 4) for x in (compose.alike @ weights, compose.squared))
        np.testing.assert_allclose((near / np.sqrt(size)).mean(), alike)
        return bleu + names[chosen].sum() + targets._likeness * alike
    value = {tuple(c): worth(c) for c in sets}
    assert sorted(compose(weights, wanted)) == list(max(value, key=value.get)) and len(value) > 20


@pytest.mark.parametrize("kind,size", [(AttentionDecoder, dict(attention=16)), (TransformerDecoder, dict(layers=1, heads=2))])
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
    with learn.no_bar(), learn.no_logging(): learn.fit(20, cbs=PointAtFindings(head, ["Cardiomegaly", "Pleural Effusion"], vocab, weight))
    tokens = torch.tensor([vocab.encode(text)[:-2]] * 8)
    logits, looks = decoder(torch.tensor(store[40:]).float(), tokens, looks=True)
    share = looks[range(8), :, place[40:]].mean(0)  # of each word, on the finding's place
    assert logits.shape == (8, 7, len(vocab)) and torch.allclose(looks.sum(-1), torch.ones(8, 7))
    assert (share[:3] > .4).all() if weight else (share[:3] < .1).all()


def test_report_weights_are_a_ridge_regression():
    counts = np.array([[text.count("."), text.count("the")] for text in said])
    x = TfidfVectorizer(analyzer=targets._visible_parts, binary=True).fit(coded)
    asked = [["Cardiomegaly"], ["normal"], ["Pleural Effusion/left", "Cardiomegaly"]]
    theirs = Ridge(alpha=3).fit(x.transform(coded).toarray(), counts).predict(x.transform(asked).toarray())
    weights = report_weights(coded, asked)
    np.testing.assert_allclose(weights @ counts, theirs, rtol=1e-9)
    np.testing.assert_allclose(weights.sum(1), 1)


def test_the_consensus_is_the_medoid_of_those_with_the_same_codes():
    assert consensus_reports(said, coded, [["normal"], ["Cardiomegaly"]], k=1) == [said[0], said[-1]]


def test_crossed_codes_are_codes_of_two_studies():
    mesh = [[f"a{i}", f"b{i}", f"c{i}"] for i in range(200)] + [["normal"]] * 100
    crossed = cross_codes(mesh, 7)
    assert crossed == cross_codes(mesh, 7) != cross_codes(mesh, 8) and len(crossed) == len(mesh)
    for own, new in zip(mesh, crossed):
        others = {code[1:] for code in set(new) - set(own) - {"normal"}}
        assert len(others) <= 1 and ("normal" not in new or new == ["normal"])  # what is not its own comes from one other study
    kept = np.mean([code in new for own, new in zip(mesh[:200], crossed) for code in own])
    assert .42 < kept < .58  # by a coin: 600 throws, 4 standard deviations


def test_each_row_of_the_table_is_what_evaluate_and_others_measure(tmp_path, few_studies):
    vocab, models = Vocab.from_texts(few_studies.findings.map(clean_chen)), {}
    for name, kind in {"LSTM": LSTMDecoder, "attention": AttentionDecoder}.items():
        torch.manual_seed(len(models))
        models[name] = tmp_path / name
        save_model(models[name], small(kind, vocab), vocab, about)
    test = few_studies[few_studies.split == "test"]
    references = list(test.findings.map(clean_chen))
    said = baselines(encoder=None) | {name: describe(folder, test, k=2) for name, folder in models.items()}
    table = results_table(references, said)
    assert list(table.index) == list(said) and table.columns.name == "simulated images" and (table.distinct.dtype == int)
    assert results_table(references, {"a": references}, images="openi").columns.name != "simulated images"
    for name, folder in models.items():
        card = evaluate(folder, k=2)
        assert table.loc[name].to_dict() == {figure: card[figure] for figure in table.columns}
    from nltk.translate.bleu_score import corpus_bleu as nltk_bleu
    for name, texts in said.items():
        theirs = nltk_bleu([[r.split()] for r in references], [h.split() for h in texts], weights=(1,))
        assert table.loc[name, "bleu_1"] == pytest.approx(theirs, abs=1e-9)
        assert table.loc[name, "distinct"] == len({*texts}) and table.loc[name, "finding_f1_micro"] == finding_f1(references, texts)[0]


def test_paired_bootstrap_draws_the_same_studies_for_both():
    "Against the definition: draw, score both with `corpus_bleu`, subtract."
    rng = np.random.default_rng(1)
    words = "the heart is normal lungs are clear no effusion left right .".split()
    references = [" ".join(rng.choice(words, 12)) for _ in range(30)]
    def noisy(share): return [" ".join(w if rng.random() > share else "large" for w in r.split()) for r in references]
    ours, theirs = noisy(.05), noisy(.3)
    difference, low, high = paired_bootstrap(references, ours, theirs)
    assert difference == pytest.approx(corpus_bleu(references, ours)[3] - corpus_bleu(references, theirs)[3]) and low < difference < high
    draws = []
    for _ in range(400):
        rows = rng.integers(0, 30, 30)
        one, other = (corpus_bleu([references[i] for i in rows], [texts[i] for i in rows])[3] for texts in (ours, theirs))
        draws.append(one - other)
    by_hand = np.percentile(draws, [2.5, 97.5])
    assert [low, high] == pytest.approx(by_hand.tolist(), abs=.2 * (by_hand[1] - by_hand[0]))
    assert paired_bootstrap(references, theirs, ours) == pytest.approx((-difference, -high, -low))
    with pytest.raises(ValueError, match="30 references and 29"): paired_bootstrap(references, ours, theirs[1:])


def test_findings_table_by_hand():
    table = findings_table(["small effusion . cardiomegaly .", "normal .", "effusion ."], ["effusion .", "effusion .", "no effusion . scoliosis ."])
    assert table.index[0] == "Pleural Effusion" and table.loc["Pleural Effusion"].tolist() == [2, 2, 1, .5, .5, .5]
    assert table.loc["Cardiomegaly", ["wanted", "said", "right", "recall"]].tolist() == [1, 0, 0, 0] and np.isnan(table.precision["Cardiomegaly"])
    assert table.loc["Scoliosis", ["wanted", "said", "right", "precision"]].tolist() == [0, 1, 0, 0] and np.isnan(table.recall["Scoliosis"])
    assert table[["wanted", "said", "right"]].sum().tolist() == [3, 3, 1]


def test_the_shipped_model_is_found_by_name(tmp_path, monkeypatch):
    assert find_model("attention").parent == files.assets
    (tmp_path / "attention").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("attention").parent == files.assets  # a folder of that name here is ./attention
    (tmp_path / "attention" / "config.json").write_text("{}")
    assert find_model("./attention").resolve() == find_model(Path("attention")).resolve() == tmp_path / "attention"
    with pytest.raises(FileNotFoundError, match="nobody"): find_model("nobody")


def test_public_names_are_reachable():
    for name in xraycap.__all__: assert getattr(xraycap, name).__name__ == name
    with pytest.raises(AttributeError): xraycap.nothing
    assert set(xraycap.__all__) <= set(dir(xraycap))

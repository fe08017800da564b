"What was asked is read, and the conclusion is a paragraph of its own."
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from xraycap import training
from xraycap.app import LONGEST, create_app
from xraycap.batches import caption_dls
from xraycap.captioner import Captioner, example_study
from xraycap.cli import app
from xraycap.fast import beam_search, fast_decoder, greedy_search
from xraycap.indication import IMPRESSION, ROWS, ReadingDecoder, WithIndications, concludes, indication_rows
from xraycap.indication import indication_words
from xraycap.models import decoder_names, load_model, save_model
from xraycap.results import evaluate
from xraycap.search import beam_search as beam_alone
from xraycap.text import EOS, SOS, Vocab
from xraycap.training import train_captioner

WORDS = Vocab([*"the heart is large lungs are clear no effusion . cough fever".split(), IMPRESSION])


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(1)
    return ReadingDecoder(len(WORDS), hidden=24, attention=12, dropout=0.).eval()


@pytest.fixture(scope="module")
def captioner(reader): return Captioner(reader, WORDS, dict(encoder="chest", images="phantom"), "small")


def asked(reader, *texts, seed=0):
    places = np.random.default_rng(seed).random((len(texts), 98, 1024), np.float32)
    rows = np.stack([indication_rows(text, WORDS, reader.embedding.weight) for text in texts])
    return torch.from_numpy(np.concatenate([places, rows], 1))


def test_words_of_an_indication():
    assert indication_words("62-year-old XXXX with cough/fever x 3 days. R/O pneumonia") == (
        "yearold with cough fever days pneumonia".split())
    for nothing in ("", "XXXX", "-- 12"): assert indication_words(nothing) == []


def test_rows_are_the_vectors_of_known_words(reader):
    vectors = reader.embedding.weight
    rows = indication_rows("Fever, dizziness, COUGH", WORDS, vectors)
    assert rows.shape == (ROWS, 1024) and rows.dtype == np.float32
    assert (rows[0, :300] == vectors[WORDS.stoi["fever"]].numpy()).all()  # dizziness is not known, and takes no row
    assert (rows[1, :300] == vectors[WORDS.stoi["cough"]].numpy()).all()
    assert not rows[2:].any() and not rows[:, 300:].any()
    assert indication_rows("cough " * 40, WORDS, vectors).any(1).all()  # what is too long is cut
    store = WithIndications({7: np.ones((98, 1024), np.float16)}, pd.DataFrame(dict(uid=[7], indication=["fever"])),
                            WORDS, vectors)
    assert (store[7][:98] == 1).all() and (store[7][98] == rows[0]).all() and not store[7][99:].any()


def test_teacher_forcing_is_step_by_step(reader):
    x = asked(reader, "cough", "no cough fever", "")
    tokens = torch.tensor([[SOS, 5, 6, 7], [SOS, 8, 9, 4], [SOS, 13, 4, 5]])
    memory, state = reader.start(x)
    for t, logits in enumerate(reader(x, tokens).unbind(1)):
        want, state, weights = reader.step(tokens[:, t], state, memory)
        assert torch.allclose(logits, want, atol=1e-6) and weights.shape == (3, 98 + ROWS)


def test_the_fast_twin_reads_too(reader):
    x, tokens = asked(reader, "cough fever", ""), torch.randint(4, len(WORDS), (2, 9))
    fast = fast_decoder(reader)
    assert isinstance(fast, ReadingDecoder) and fast_decoder(fast) is fast
    gradients = []
    for decoder in reader, fast:
        reader.zero_grad()
        logits, weights = decoder.forward_with_attention(x, tokens)
        (logits.logsumexp(-1).sum() + weights[..., 98].sum()).backward()
        gradients.append([logits, weights, *(p.grad.clone() for p in reader.parameters() if p.requires_grad)])
    for one, other in zip(*gradients): assert torch.allclose(one, other, atol=1e-4)
    for first in SOS, WORDS.stoi[IMPRESSION]:
        for ours, theirs in zip(beam_search(fast, x, first=first), beam_alone(reader, x, first=first)):
            assert ours.tokens == theirs.tokens and ours.logp == pytest.approx(theirs.logp, abs=1e-4)


def test_it_depends_on_each_word_and_on_their_order(reader):
    x = asked(reader, "cough fever", "fever cough", "cough", "")
    x[:, :98] = x[0, :98]  # one image
    with torch.inference_mode(): logits = reader(x, torch.full((4, 1), SOS))[:, 0]
    assert min((logits[i] - logits[j]).abs().max() for i in range(4) for j in range(i)) > 1e-4


def test_one_who_does_not_see(reader):
    "Of two studies with the same indication it says the same; and it is saved as one who does not see."
    torch.manual_seed(2)
    blind = ReadingDecoder(len(WORDS), hidden=24, attention=12, dropout=0., blind=True).eval()
    x = asked(blind, "cough", "cough", "fever")
    with torch.inference_mode(): logits = blind(x, torch.full((3, 1), SOS))
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])
    assert ReadingDecoder(**blind.config).blind and not ReadingDecoder(**reader.config).blind


def test_in_training_some_are_not_asked(reader, monkeypatch):
    torch.manual_seed(0)
    x = asked(reader, *["cough fever"] * 400)
    decoder = ReadingDecoder(**reader.config).train()
    for share in .3, 1:
        monkeypatch.setattr(decoder, "unasked", share)
        (memory,), _ = decoder.start(x)
        heard = memory[:, 98:].abs().sum((1, 2)) > 0
        assert heard.float().mean().item() == pytest.approx(1 - share, abs=.07)
    (memory,), _ = decoder.eval().start(x)
    assert (memory[:, 98:100].abs().sum(2) > 0).all() and not memory[:, 100:].any()


def test_saved_and_opened(tmp_path, reader):
    save_model(tmp_path / "model", reader, WORDS, dict(encoder="chest", images="phantom"))
    decoder, vocab, config = load_model(tmp_path / "model")
    assert config["decoder"] == "reader" and type(decoder) is decoder_names["reader"] and vocab.itos == WORDS.itos
    x, tokens = asked(reader, "cough", ""), torch.full((2, 3), SOS)
    with torch.inference_mode(): assert (decoder(x, tokens) - reader(x, tokens)).abs().max() < .01


def test_a_report_of_two_paragraphs(captioner):
    example = example_study()
    views = example["frontal"], example["lateral"]
    report = captioner.report(*views, indication="cough and dizziness", k=2)
    assert report.as_dict()["impression"] == report.impression and report.as_dict()["indication"] == report.indication
    assert np.allclose(report.attention.sum(1), 1) and report.attention.shape == (len(report.words), 98)
    assert report.warnings == ["The model does not know these words of the indication: and, dizziness."]
    _, places = captioner.encode(*views)
    x = np.concatenate([places, indication_rows("cough", WORDS, captioner.decoder.embedding.weight)])[None]
    want, = beam_alone(captioner.decoder, x, k=2, first=WORDS.stoi[IMPRESSION])
    assert report.conclusion == WORDS.decode(want.tokens).split()
    alone = captioner.report(*views, impression=False)
    assert alone.impression is None and "indication" not in alone.as_dict()


def test_other_models_say_that_they_cannot_read():
    example = example_study()
    captioner = Captioner.load("attention")
    with pytest.raises(ValueError, match="'attention' cannot read an indication.*'reader'"):
        captioner.report(example["frontal"], indication="cough")
    report = captioner.report(example["frontal"])
    assert report.impression is None and report.as_dict()["impression"] is None


def test_what_is_learnt(tmp_path, few_studies, monkeypatch):
    "Findings of all bodies; impressions and indications of those with the study's own codes only."
    taught = {}
    def dls(studies, store, vocab, *args, **kwargs):
        loaders = caption_dls(studies, store, vocab, *args, **kwargs)
        taught.update(studies=studies, store=store, vocab=vocab, tokens=loaders.train.dataset.tokens)
        return loaders
    monkeypatch.setattr(training, "caption_dls", dls)
    train_captioner(tmp_path / "model", decoder="reader", epochs=1, bodies=1, crossed=1, hidden=64, min_count=1)
    train = few_studies[few_studies.split == "train"]
    vocab, tokens = taught["vocab"], taught["tokens"]
    starts = [row[0] for row in tokens]
    assert starts.count(SOS) == 2 * len(train) and starts.count(vocab.stoi[IMPRESSION]) == len(train)
    learnt = taught["studies"][taught["studies"].start != SOS]
    assert set(learnt.uid) == set(few_studies[few_studies.split != "test"].uid)
    first = train.iloc[0]
    assert vocab.decode(tokens[2 * len(train)][1:]) == training.CLEANINGS["chen"](first.impression)
    study = next(o for o in train.itertuples() if indication_words(o.indication))
    rows = taught["store"][study.uid][98:]
    assert rows.any(1).sum() == len(indication_words(study.indication))
    assert not taught["store"][study.uid + 10_000][98:].any()  # a crossed body
    card = evaluate(tmp_path / "model", k=1)
    assert card["impression"]["bleu_1"] >= 0 and card["impression"].keys() >= {"bleu_4", "cider", "bleu_4_shuffled"}
    train_captioner(tmp_path / "other", decoder="lstm", epochs=1, bodies=1, crossed=0, hidden=16)
    assert "impression" not in evaluate(tmp_path / "other", k=1)


def test_a_table_without_indications(tmp_path, few_studies, monkeypatch):
    without = few_studies.assign(indication="")
    without.attrs = few_studies.attrs
    monkeypatch.setattr(training, "load_studies", lambda images, split: without)
    with pytest.raises(ValueError, match="phantom has an indication to read: add a column named indication"):
        train_captioner(tmp_path / "model", decoder="reader")


def run(*args): return CliRunner().invoke(app, [str(a) for a in args])


def test_on_the_command_line(tmp_path):
    out = ("--out", tmp_path)
    said = run("report", "--indication", "shortness of breath", *out)
    assert said.exit_code == 0 and "\nImpression: " in said.stdout and "'reader'" in said.stdout
    made = json.loads(run("report", "--indication", "shortness of breath", "--json", *out).stdout)
    assert made["model"] == "reader" and made["impression"] and made["indication"] == "shortness of breath"
    only = run("report", "--model", "reader", "--findings-only", *out)
    assert "Impression" not in only.stdout
    wrong = run("report", "--indication", "cough", "--model", "attention", *out)
    assert wrong.exit_code == 2 and wrong.stderr.count("\n") == 1 and "cannot read an indication" in wrong.stderr
    assert json.loads(run("report", "--json", *out).stdout)["model"] == "attention"


def test_in_the_app(captioner):
    def ask(client, **fields):
        file = io.BytesIO()
        Image.open(example_study()["frontal"]).save(file, "PNG")
        file.seek(0)
        return client.post("/api/report", data={"frontal": (file, "a.png"), **fields})
    client = create_app(captioner).test_client()
    assert "Why does the patient come?" in client.get("/").text
    answer = ask(client, indication="cough").json
    assert answer["indication"] == "cough" and isinstance(answer["impression"], str)
    too_long = ask(client, indication="x" * (LONGEST + 1))
    assert too_long.status_code == 400 and f"{LONGEST} are the most" in too_long.json["error"]
    deaf = create_app(Captioner.load("attention")).test_client()
    assert "Why does the patient come?" not in deaf.get("/").text
    refused = ask(deaf, indication="cough")
    assert refused.status_code == 422 and "cannot read" in refused.json["error"]
    assert ask(deaf).json["impression"] is None


def test_greedy_and_beam_of_one_agree(reader):
    x = asked(reader, "cough", "fever", "")
    for one, other in zip(greedy_search(reader, x), beam_search(reader, x, k=1)):
        assert one.tokens == other.tokens and EOS not in one.tokens


def test_a_table_with_too_few_impressions_teaches_none(tmp_path, few_studies, monkeypatch):
    "The start token is a word like others, and what occurs twice is not learnt; then it is a reader of findings only."
    some = few_studies.assign(impression=[text if i < 2 else "" for i, text in enumerate(few_studies.impression)])
    some.attrs = few_studies.attrs
    for module in ("training", "studies"): monkeypatch.setattr(f"xraycap.{module}.load_studies", lambda *args: some)
    train_captioner(tmp_path / "model", decoder="reader", epochs=1, bodies=1, crossed=0, hidden=64)
    decoder, vocab, _ = load_model(tmp_path / "model")
    assert IMPRESSION not in vocab.stoi and not concludes(decoder, vocab)
    assert "impression" not in evaluate(tmp_path / "model", k=1)
    example = example_study()
    report = Captioner.load(tmp_path / "model").report(example["frontal"], indication="chest pain")
    assert report.impression is None and report.indication == "chest pain"

"Saved models, the score card, and a training from studies to a folder."
import json

import numpy as np
import pandas as pd
import pytest
import torch

import xraycap
from xraycap import results
from xraycap.attention import AttentionDecoder
from xraycap.lstm import LSTMDecoder
from xraycap.results import baselines, check_out, evaluate, find_model, generate, load_model, save_model, score_card, train_captioner
from xraycap.text import Vocab

texts = ["the heart is normal in size .", "the lungs are clear .", "there is a left pleural effusion ."]
about = dict(encoder="phantom", images="phantom", split="chen")


def small(kind, vocab): return kind(len(vocab), hidden=16, embedding_size=8)


@pytest.mark.parametrize("kind", [AttentionDecoder, LSTMDecoder])
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
    monkeypatch.setattr(results, "save", full)
    with pytest.raises(OSError): save_model(tmp_path / "model", small(AttentionDecoder, vocab), vocab, about)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_saving_does_not_replace_other_things(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="something other than a model"): check_out(tmp_path)
    with pytest.raises(ValueError, match="something other than a model"): check_out(tmp_path / "thesis.tex")
    assert check_out(tmp_path / "new") == tmp_path / "new"


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x80\x04."])
def test_a_damaged_model_is_a_sentence(tmp_path, name, content):
    vocab = Vocab.from_texts(texts)
    save_model(tmp_path / "model", small(AttentionDecoder, vocab), vocab, about)
    (tmp_path / "model" / name).unlink()
    if content is not None: (tmp_path / "model" / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match="model"): load_model(tmp_path / "model")


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
    for kind in AttentionDecoder, LSTMDecoder:
        torch.manual_seed(0)
        decoder = small(kind, vocab).eval()
        assert generate(decoder, vocab, store, list(store), bs=5) == generate(decoder, vocab, store, list(store), bs=2)


def test_score_card():
    card = score_card(texts, texts)
    assert card.keys() == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "finding_f1_micro", "finding_f1_macro",
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


def test_training_from_studies_to_a_report(tmp_path, monkeypatch):
    "A few studies, random features: the whole path, not its quality."
    from xraycap.reports import load_studies as real
    def few(images, split):
        studies = real(images, split)
        attrs, parts = studies.attrs, [studies[studies.split == part].head(n) for part, n in (("train", 40), ("val", 10), ("test", 5))]
        few = pd.concat(parts)
        few.attrs.update(attrs)
        return few
    def noise(studies, encoder): return {u: np.random.default_rng(u).normal(size=(98, 1024)).astype("float16") for u in studies.uid}
    monkeypatch.setattr(results, "load_studies", few)
    monkeypatch.setattr(results, "store_features", noise)
    losses = train_captioner(tmp_path / "model", decoder="lstm", epochs=2, bs=16)
    assert len(losses) == 2 and losses.valid_loss.iloc[1] < losses.valid_loss.iloc[0]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["decoder"], config["images"], config["split"], config["encoder"]) == ("lstm", "phantom", "chen", "phantom")
    assert len(config["losses"]["valid_loss"]) == 2
    card = evaluate(tmp_path / "model", k=2)
    assert (card["k"], card["images"], card["split"]) == (2, "phantom", "chen") and 0 <= card["bleu_4"] <= 1


def test_the_shipped_model_is_found_by_name(tmp_path, monkeypatch):
    assert find_model("attention").parent == results.assets
    (tmp_path / "attention").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("attention").parent == results.assets  # a folder of that name here is ./attention
    with pytest.raises(FileNotFoundError, match="nobody"): find_model("nobody")


def test_public_names_are_reachable():
    for name in xraycap.__all__: assert getattr(xraycap, name).__name__ == name
    with pytest.raises(AttributeError): xraycap.nothing
    assert set(xraycap.__all__) <= set(dir(xraycap))

"Saved models: a folder of three files that is safe to open, and what a model says"
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import xraycap
from xraycap import files, models
from xraycap.attention import AttentionDecoder
from xraycap.lstm import LSTMDecoder
from xraycap.models import check_model_folder, find_model, generate, load_model, save_model
from xraycap.text import Vocab
from xraycap.training import train_captioner

texts = ["the heart is normal in size .", "the lungs are clear .", "there is a left pleural effusion ."]
about = dict(encoder="chest", images="phantom", split="chen")


def small(kind, vocab): return kind(len(vocab), hidden=16, embedding_size=8)


@pytest.mark.parametrize("kind", models.decoder_names.values())
def test_a_model_comes_back_from_its_folder(tmp_path, kind):
    vocab = Vocab.from_texts(texts)
    save_model(tmp_path / "deep" / "model", small(kind, vocab), vocab, about)
    decoder, words, config = load_model(tmp_path / "deep" / "model")
    assert type(decoder) is kind and words.itos == vocab.itos and config["images"] == "phantom" and not decoder.training
    there = {p.name for p in (tmp_path / "deep" / "model").iterdir()}
    assert there == {"config.json", "vocab.json", "model.safetensors"}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model"]
    save_model(tmp_path / "again", decoder, words, about)
    twice = load_model(tmp_path / "again")[0].state_dict()
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, twice[name]), name  # half precision is reached once, then nothing changes
        assert tensor.dtype == torch.float32


def test_what_a_killed_save_left_is_swept_up(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in f".{ended.pid}-model", f".{ended.pid}-other", f".{os.getppid()}-model":
        (tmp_path / name / "new").mkdir(parents=True)
        (tmp_path / name / "new" / "model.safetensors").write_bytes(b"half")
    vocab = Vocab.from_texts(texts)
    save_model(tmp_path / "model", small(AttentionDecoder, vocab), vocab, about)
    assert {p.name for p in tmp_path.iterdir()} == {"model", f".{ended.pid}-other", f".{os.getppid()}-model"}


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
    with pytest.raises(ValueError, match="something other than a model"): check_model_folder(tmp_path)
    with pytest.raises(ValueError, match="something other than a model"): check_model_folder(tmp_path / "thesis.tex")
    assert check_model_folder(tmp_path / "new") == tmp_path / "new"


def test_a_place_that_cannot_be_saved_into_is_known_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="the folder you are in"): check_model_folder(".")
    with pytest.raises(ValueError, match="Nothing can be written into .*file"):
        train_captioner(tmp_path / "file" / "model")
    check_model_folder("deep/er/model")
    assert not (tmp_path / "here" / "deep").exists()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match="Nothing can be written into"): check_model_folder(tmp_path / "model")


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
    with pytest.raises(ValueError, match="encoder and images"):
        save_model(tmp_path / "model", small(AttentionDecoder, vocab), vocab, dict(images="phantom"))
    save_model(tmp_path / "model", small(AttentionDecoder, vocab), vocab, about)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "encoder"}))
    with pytest.raises(ValueError, match="model.*cannot be opened"): load_model(tmp_path / "model")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
    vocab = Vocab.from_texts(texts)
    for kind in models.decoder_names.values():
        save_model(tmp_path / "model", small(kind, vocab), vocab, about)
        weights = load_file(tmp_path / "model" / "model.safetensors")
        next(v for v in weights.values() if v.is_floating_point()).view(-1)[0] = value
        save_file(weights, tmp_path / "model" / "model.safetensors")
        with pytest.raises(ValueError, match="model .*cannot be used: .* not finite"): load_model(tmp_path / "model")


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_saving_looks_for_numbers_that_are_too_large(tmp_path, value):
    vocab = Vocab.from_texts(texts)
    decoder = small(AttentionDecoder, vocab)
    save_model(tmp_path / "model", decoder, vocab, about)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with torch.no_grad(): next(decoder.parameters()).view(-1)[0] = value
    with pytest.raises(ValueError, match="not finite or larger than 65,504"):
        save_model(tmp_path / "model", decoder, vocab, about)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["encoder", "images"])
@pytest.mark.parametrize("value", [None, 3, ["chest"], {}])
def test_a_model_that_names_no_encoder_is_refused(tmp_path, name, value):
    vocab = Vocab.from_texts(texts)
    save_model(tmp_path / "model", small(AttentionDecoder, vocab), vocab, about)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(ValueError, match="cannot be opened"): load_model(tmp_path / "model")


def test_a_pickle_is_not_opened(tmp_path):
    vocab, canary = Vocab.from_texts(texts), tmp_path / "canary"
    class Attack:
        def __reduce__(self): return open, (str(canary), "w")
    save_model(tmp_path / "model", small(AttentionDecoder, vocab), vocab, about)
    torch.save(Attack(), tmp_path / "model" / "model.safetensors")
    with pytest.raises(ValueError): load_model(tmp_path / "model")
    assert not canary.exists()


def test_generate_does_not_depend_on_the_batch():
    vocab = Vocab.from_texts(texts)
    store = {uid: np.random.default_rng(uid).normal(size=(98, 1024)).astype("float16") for uid in range(5)}
    for kind in models.decoder_names.values():
        torch.manual_seed(0)
        decoder = small(kind, vocab).eval()
        assert generate(decoder, vocab, store, list(store), bs=5) == generate(decoder, vocab, store, list(store), bs=2)


def test_the_shipped_model_is_found_by_name(tmp_path, monkeypatch):
    assert find_model("attention").parent == files.assets
    (tmp_path / "attention").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("attention").parent == files.assets  # a folder of that name here is ./attention
    (tmp_path / "attention" / "config.json").write_text("{}")
    assert find_model("./attention").resolve() == find_model(Path("attention")).resolve() == tmp_path / "attention"
    with pytest.raises(FileNotFoundError, match="nobody"): find_model("nobody")


def test_public_names_are_reachable():
    for name in xraycap.__all__: getattr(xraycap, name)
    earlier = dict(check_out="check_model_folder", grow="beam_tree", Download="Source", CheXNet="ImageEncoder")
    for old, new in earlier.items(): assert getattr(xraycap, old) is getattr(xraycap, new)
    with pytest.raises(AttributeError): xraycap.nothing
    assert set(xraycap.__all__) <= set(dir(xraycap))

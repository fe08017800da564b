"xraycap.language_model: BERT and GPT-2 as decoders, checked against Hugging Face's own read-out on tiny random models."
import pytest
import torch

pytest.importorskip("peft", reason="language models need pip install 'xraycap[lm]'")

from xraycap.fast import beam_search, greedy_search
from xraycap.language_model import (
    LanguageDecoder, LanguageVocab, make_language_model, open_language_model, perplexity, train_language_model)
from xraycap.models import describe, load_model
from xraycap.text import EOS, UNK

TEXTS = ["the heart is normal in size .", "the lungs are clear .", "no pleural effusion or pneumothorax ."]


@pytest.fixture(params=["bert", "gpt2"])
def made(request, tmp_path):
    torch.manual_seed(0)
    lm, tokenizer = open_language_model(make_language_model(request.param, TEXTS, tmp_path / "lm", hidden=32))
    vocab = LanguageVocab(tokenizer)
    return LanguageDecoder(lm, vocab).eval(), vocab


def shaken(decoder):
    for p in decoder.lm.parameters(): p.data += .2 * torch.randn_like(p)
    return decoder


def theirs(decoder, features, closed, **how):
    with torch.no_grad(): places = decoder.start(features)[0][0]
    return decoder.lm.generate(
        torch.ones(len(features), 1, dtype=torch.long), encoder_hidden_states=places, max_new_tokens=10,
        do_sample=False, use_cache=False,  # its cache for BERT has no room for places
        suppress_tokens=closed, renormalize_logits=True, return_dict_in_generate=True, output_scores=True, **how)


def test_greedy_search_is_their_generate(made):
    decoder, features = shaken(made[0]), torch.randn(4, 98, 1024)
    found = theirs(decoder, features, [0, 1, 3, 4]).sequences[:, 1:].tolist()
    expected = [[4 + i for i in row if i not in (0, 2)] for row in found]
    assert [h.tokens for h in greedy_search(decoder, features, max_len=10)] == expected


def test_beam_search_is_their_generate(made):
    decoder, features = shaken(made[0]), torch.randn(4, 98, 1024)
    decoder.closed[EOS] = -torch.inf  # their finished reports give their place away, ours keep it: let none finish
    expected, found = theirs(decoder, features, [0, 1, 2, 3, 4], num_beams=3), beam_search(decoder, features, 3, 10)
    assert [h.tokens for h in found] == (4 + expected.sequences[:, 1:]).tolist()
    assert [h.score for h in found] == pytest.approx(expected.sequences_scores.tolist(), abs=1e-4)


def test_step_by_step_equals_teacher_forcing_whoever_shares_the_batch(made):
    decoder, features = shaken(made[0]), torch.randn(2, 98, 1024)
    memory, state = decoder.start(features)
    _, state, _ = decoder.step(torch.tensor([1, 1]), state, memory)
    said = torch.randint(9, 20, (6, 2))  # three hypotheses for each of the two studies
    _, state, _ = decoder.step(said[:, 0], tuple(s[[0, 0, 0, 1, 1, 1]] for s in state), memory)
    order = torch.tensor([2, 0, 0, 4, 5, 3])
    logits, _, _ = decoder.step(said[:, 1], tuple(s[order] for s in state), memory)
    for n in range(6):
        alone = decoder(features[n // 3:n // 3 + 1], torch.tensor([[1, said[order[n], 0], said[n, 1]]]))[0, -1]
        torch.testing.assert_close(logits[n].softmax(-1), alone.softmax(-1), atol=1e-5, rtol=1e-4)


def test_only_adapters_and_the_look_at_the_places_learn(made):
    decoder, _ = made
    learn = {name for name, p in decoder.named_parameters() if p.requires_grad}
    assert all("lora" in n or "cross" in n or not n.startswith("lm.") for n in learn)
    assert {n for n, _ in decoder.named_parameters() if "lora" in n or "cross" in n} <= learn


def test_what_it_says_at_first_is_what_gpt2_says(tmp_path):
    lm, tokenizer = open_language_model(make_language_model("gpt2", TEXTS, tmp_path))
    vocab = LanguageVocab(tokenizer)
    tokens = torch.tensor([vocab.encode(TEXTS[0])])
    with torch.no_grad():
        alone = lm(torch.tensor(vocab.theirs)[tokens], use_cache=False).logits
        decoder = LanguageDecoder(lm, vocab).eval()
        torch.testing.assert_close(decoder(torch.randn(1, 98, 1024), tokens)[..., 9:], alone[..., 5:])


def test_words_come_back(made):
    _, vocab = made
    assert vocab.decode(vocab.encode(TEXTS[2])) == TEXTS[2] and vocab.encode("zyzzyva")[1] == UNK


def test_perplexity_is_their_loss(made):
    decoder, vocab = made
    ids = torch.tensor([[vocab.theirs[i] for i in vocab.encode(TEXTS[0])]])
    loss = decoder.lm(ids, labels=ids).loss.exp().item()
    assert perplexity(decoder.lm, vocab, TEXTS[:1]) == pytest.approx(loss, rel=1e-4)


def test_a_folder_without_a_model_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="cannot be had: give a folder"): open_language_model(tmp_path / "nothing")


def test_a_trained_folder_is_a_model_like_others(few_studies, tmp_path, monkeypatch):
    noise = {uid: torch.randn(98, 1024).numpy() for uid in few_studies.uid}
    monkeypatch.setattr("xraycap.language_model.load_studies", lambda *args: few_studies)
    monkeypatch.setattr("xraycap.language_model.readable_features", lambda *args: (noise, few_studies.head(0)))
    made, out = make_language_model("gpt2", TEXTS, tmp_path / "lm", hidden=32), tmp_path / "mine"
    assert len(train_language_model(made, out, epochs=1)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"lm", "mine"}
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors"}
    decoder, _, about = load_model(out)
    assert isinstance(decoder, LanguageDecoder) and about["images"] == "phantom"
    assert len(describe(out, few_studies[few_studies.split == "test"])) == 12
    train_language_model(made, out, epochs=1)  # an older one is replaced
    (out / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="no trained language model, or a damaged one"): load_model(out)


def test_a_training_that_is_stopped_leaves_nothing(few_studies, tmp_path, monkeypatch):
    def stop(*args, **how): raise KeyboardInterrupt
    monkeypatch.setattr("xraycap.language_model.load_studies", lambda *args: few_studies)
    monkeypatch.setattr("xraycap.language_model.readable_features", lambda *args: (
        {uid: torch.randn(98, 1024).numpy() for uid in few_studies.uid}, few_studies.head(0)))
    monkeypatch.setattr("xraycap.language_model.save_file", stop)
    made = make_language_model("gpt2", TEXTS, tmp_path / "lm", hidden=32)
    with pytest.raises(KeyboardInterrupt): train_language_model(made, tmp_path / "mine", epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]

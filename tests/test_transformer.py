"The Transformer decoder against the formula, PyTorch's own layer, and itself one word at a time."
import numpy as np
import pytest
import torch
from fastai.torch_core import set_seed
from torch import nn

from xraycap import models, training
from xraycap.attention import marked_studies
from xraycap.fast import beam_search, greedy_search
from xraycap.lstm import masked_loss
from xraycap.text import EOS, PAD, SOS, Vocab
from xraycap.transformer import DecoderLayer, MultiHead, TransformerDecoder, dot_attention, positions

V = 12


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return TransformerDecoder(V, torch.randn(V, 300), hidden=32, heads=4).eval()


def random_case(seed=0, B=3, T=6):
    torch.manual_seed(seed)
    tokens = torch.randint(3, V, (B, T))
    tokens[:, 0] = SOS
    return torch.rand(B, 98, 1024), tokens


def test_one_head_is_the_formula():
    torch.manual_seed(0)
    x, y, one = torch.randn(2, 3, 8), torch.randn(2, 5, 8), MultiHead(8, heads=1)
    found, weights = one(x, one.keys_values(y), torch.ones(3, 5, dtype=torch.bool).tril(1))
    W = {name: p.detach().double().numpy() for name, p in one.named_parameters()}
    dense = lambda name, z: W[f"W_{name}.weight"] @ z.double().numpy() + W[f"W_{name}.bias"]
    for n in range(2):
        for t in range(3):
            may_see = y[n, :t + 2]
            e = np.exp([dense("Q", x[n, t]) @ dense("K", y_s) / np.sqrt(8) for y_s in may_see])
            mean = sum(a * dense("V", y_s) for a, y_s in zip(e / e.sum(), may_see))
            np.testing.assert_allclose(weights[n, 0, t].detach(), np.pad(e / e.sum(), (0, 5 - len(e))), atol=1e-6)
            np.testing.assert_allclose(found[n, t].detach(), W["W_O.weight"] @ mean + W["W_O.bias"], atol=1e-6)


def test_dot_attention_is_pytorchs():
    torch.manual_seed(0)
    Q, K, values = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 3)
    mask = torch.ones(5, 7, dtype=torch.bool).tril(2)
    expected = nn.functional.scaled_dot_product_attention(Q, K, values, mask)
    torch.testing.assert_close(dot_attention(Q, K, values, mask)[0], expected)


def copy_heads(ours, theirs):
    theirs.in_proj_weight.data = torch.cat([ours.W_Q.weight, ours.W_K.weight, ours.W_V.weight]).data
    theirs.in_proj_bias.data = torch.cat([ours.W_Q.bias, ours.W_K.bias, ours.W_V.bias]).data
    theirs.out_proj.load_state_dict(ours.W_O.state_dict())


def pytorchs(ours):
    "PyTorch's own layer with the numbers of `ours`."
    hidden = ours.norm_words.weight.shape[0]
    theirs = nn.TransformerDecoderLayer(hidden, ours.words.heads, dim_feedforward=hidden, dropout=0.0, norm_first=True,
                                        batch_first=True).eval()
    copy_heads(ours.words, theirs.self_attn)
    copy_heads(ours.places, theirs.multihead_attn)
    for a, b in [(ours.think[0], theirs.linear1), (ours.think[2], theirs.linear2), (ours.norm_words, theirs.norm1),
                 (ours.norm_places, theirs.norm2), (ours.norm_think, theirs.norm3)]: b.load_state_dict(a.state_dict())
    return theirs


def test_a_layer_is_pytorchs_layer():
    torch.manual_seed(0)
    layer = DecoderLayer(32, heads=4, dropout=.5).eval()
    for norm in (layer.norm_words, layer.norm_places, layer.norm_think):  # as if trained
        nn.init.normal_(norm.weight, 1, .3)
        nn.init.normal_(norm.bias, 0, .3)
    x, y, mask = torch.randn(2, 6, 32), torch.randn(2, 98, 32), torch.ones(6, 6, dtype=torch.bool).tril()
    ours, past, weights = layer(x, torch.zeros(2, 4, 0, 16), layer.places.keys_values(y), mask)
    torch.testing.assert_close(ours, pytorchs(layer)(x, y, tgt_mask=~mask), atol=1e-5, rtol=1e-5)
    assert past.shape == (2, 4, 6, 16) and weights.shape == (2, 4, 6, 98)


def test_the_decoder_is_pytorchs_layers_between_embedding_and_output(decoder):
    features, tokens = random_case()
    places = torch.relu(decoder.encode(features))
    position = decoder.view[:, None, None] + decoder.row[:, None] + decoder.column
    places = (places.unflatten(1, (2, 7, 7)) + position).flatten(1, 3)
    t, i = np.arange(6)[:, None], np.arange(16)
    angle = t / 10000 ** (2 * i / 32)
    where = torch.tensor(np.concatenate([np.sin(angle), np.cos(angle)], 1), dtype=torch.float32)
    x = decoder.project(decoder.embedding(tokens)) * 32 ** .5 + where
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    for layer in decoder.layers: x = pytorchs(layer)(x, places, tgt_mask=mask, tgt_is_causal=True)
    torch.testing.assert_close(decoder(features, tokens), decoder.output(decoder.norm(x)), atol=1e-4, rtol=1e-4)


def test_positions():
    p = positions(torch.arange(100), 32)
    assert p.shape == (100, 32)
    for t in (0, 3, 99):
        for i in (0, 1, 15):
            assert p[t, i].item() == pytest.approx(np.sin(t / 10000 ** (2 * i / 32)), abs=1e-5)
            assert p[t, 16 + i].item() == pytest.approx(np.cos(t / 10000 ** (2 * i / 32)), abs=1e-5)


def test_step_by_step_equals_teacher_forcing(decoder):
    features, tokens = random_case()
    memory, state = decoder.start(features)
    one_by_one, theirs = [], decoder.forward_with_attention(features, tokens)
    for t in range(6):
        assert [tuple(s.shape) for s in state] == [(3, 4, t, 16)] * 2
        logits, state, weights = decoder.step(tokens[:, t], state, memory)
        one_by_one.append(logits)
        assert weights.shape == (3, 98)
        torch.testing.assert_close(weights.sum(1), torch.ones(3))
        torch.testing.assert_close(weights, theirs[1][:, t], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack(one_by_one, 1), theirs[0], atol=1e-5, rtol=1e-5)


def test_no_word_sees_a_later_one(decoder):
    features, tokens = random_case()
    before = decoder(features, tokens)
    for t in range(1, 6):
        changed = tokens.clone()
        changed[:, t] = 3 + (changed[:, t] - 2) % (V - 3)
        after = decoder(features, changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert ((after[:, t:] - before[:, t:]).abs().amax(-1) > 1e-6).all()  # and everything from there on does see it


def test_the_past_matters_and_so_does_its_order(decoder):
    features, _ = random_case(B=1)
    a, b = (decoder(features, torch.tensor([[SOS, *words, 9]]))[0, -1] for words in ([4, 5, 6], [6, 5, 4]))
    assert (a - b).abs().max() > 1e-3


def test_memory_is_one_copy_a_study_and_state_follows_its_hypothesis(decoder):
    features, tokens = random_case(B=2)
    memory, state = decoder.start(features)
    assert [tuple(m.shape) for m in memory] == [(2, 4, 98, 16)] * 2
    _, state, _ = decoder.step(tokens[:, 0], state, memory)
    said = torch.randint(3, V, (6, 2))  # three hypotheses for each of the two studies
    _, state, _ = decoder.step(said[:, 0], tuple(s[[0, 0, 0, 1, 1, 1]] for s in state), memory)
    order = torch.tensor([2, 0, 0, 4, 5, 3])  # a beam's choice: some live on, one twice, one not at all
    logits, _, weights = decoder.step(said[:, 1], tuple(s[order] for s in state), memory)
    for n in range(6):
        alone = torch.tensor([[SOS, said[order[n], 0], said[n, 1]]])
        torch.testing.assert_close(logits[n], decoder(features[n // 3:n // 3 + 1], alone)[0, -1], atol=1e-5, rtol=1e-5)
        own, empty = decoder.start(features[n // 3:n // 3 + 1])
        torch.testing.assert_close(weights[n], decoder._read(alone, empty, own)[2][0, -1], atol=1e-5, rtol=1e-5)


def test_attention_shown_is_the_last_layers_mean_over_heads(decoder):
    features, tokens = random_case(B=2)
    seen, forward = [], decoder.layers[-1].places.forward
    def watch(*args):
        seen.append(forward(*args)[1])
        return forward(*args)
    decoder.layers[-1].places.forward = watch
    memory, state = decoder.start(features)
    weights = decoder.step(tokens[:, 0], state, memory)[2]
    torch.testing.assert_close(weights, sum(seen[0][:, head, 0] for head in range(4)) / 4)


def test_a_beam_of_one_is_greedy_search(decoder):
    for p in decoder.parameters(): p.data.mul_(1.5)  # probabilities far from even
    features = torch.rand(6, 98, 1024)
    beams, likeliest = beam_search(decoder, features, k=1, max_len=15), greedy_search(decoder, features, max_len=15)
    for x, one, greedy in zip(features, beams, likeliest):
        assert one.tokens == greedy.tokens == beam_search(decoder, x[None], k=1, max_len=15)[0].tokens
        np.testing.assert_allclose(one.attention, greedy.attention, atol=1e-5)
        assert one.logp == pytest.approx(greedy.logp, abs=1e-4)


def test_a_beams_score_is_that_of_its_words(decoder):
    "What the search adds up while it reorders the cache, against one teacher-forced pass over the report it chose."
    features = torch.rand(5, 98, 1024)
    for x, found in zip(features, beam_search(decoder, features, k=4, max_len=12)):
        predicted = [*found.tokens, EOS][:12]
        logits = decoder(x[None], torch.tensor([[SOS, *predicted[:-1]]]))[0].detach()
        logits[:, [PAD, SOS, 3]] = -torch.inf
        logp = logits.log_softmax(-1)[range(len(predicted)), predicted].sum().item()
        assert found.logp == pytest.approx(logp, abs=1e-4)


def test_reports_may_be_longer_than_those_it_learnt_from(decoder):
    decoder.output.bias.data[EOS] = -1e4
    assert [len(h.tokens) for h in greedy_search(decoder, torch.rand(2, 98, 1024), max_len=80)] == [80, 80]


def test_padding_changes_nothing_before_it(decoder):
    features, tokens = random_case()
    longer = torch.cat([tokens, torch.full((3, 20), PAD)], 1)
    torch.testing.assert_close(decoder(features, longer)[:, :6], decoder(features, tokens), atol=1e-5, rtol=1e-5)


def test_places_are_told_apart_by_view_row_and_column_only(decoder):
    (features, tokens), order = random_case(), torch.randperm(98)
    assert not torch.allclose(decoder(features[:, order], tokens), decoder(features, tokens), atol=1e-4)
    for p in (decoder.view, decoder.row, decoder.column): nn.init.zeros_(p)
    torch.testing.assert_close(decoder(features[:, order], tokens), decoder(features, tokens), atol=1e-5, rtol=1e-4)


def test_gradient_reaches_everything_but_the_embedding(decoder):
    features, tokens = random_case()
    masked_loss(decoder(features, tokens), tokens).backward()
    without = {name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert without == {"embedding.weight"}


def test_dropout_only_in_training(decoder):
    x = random_case()
    assert torch.equal(decoder(*x), decoder(*x))
    decoder.train()
    assert not torch.equal(decoder(*x), decoder(*x))


def test_heads_must_share_evenly():
    with pytest.raises(ValueError, match="8 heads cannot share a vector of 100"): TransformerDecoder(V, hidden=100)


def test_a_model_comes_back_from_its_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(models.decoder_names, "transformer", TransformerDecoder)
    vocab = Vocab.from_texts(["the heart is normal in size .", "the lungs are clear ."])
    torch.manual_seed(0)
    decoder = TransformerDecoder(len(vocab), hidden=32, heads=4, layers=3).eval()
    models.save_model(tmp_path / "model", decoder, vocab, dict(encoder="chest", images="phantom", split="chen"))
    again, words, config = models.load_model(tmp_path / "model")
    assert type(again) is TransformerDecoder and words.itos == vocab.itos
    assert config["decoder"] == "transformer" and not again.training
    assert again.config == decoder.config
    x = torch.rand(2, 98, 1024), torch.tensor([[SOS, 5, 6], [SOS, 7, 4]])
    torch.testing.assert_close(again(*x), decoder(*x), atol=.02, rtol=.02)
    store = {u: np.random.default_rng(u).normal(size=(98, 1024)).astype("float16") for u in range(5)}
    five, two = (models.generate(again, words, store, list(store), bs=bs) for bs in (5, 2))
    assert five == two


def test_it_can_start_from_the_encoders_findings():
    torch.manual_seed(0)
    decoder, head = TransformerDecoder(V), nn.Linear(2048, 28)
    x = np.random.default_rng(0).random((8, 98, 1024)).astype("float32")
    training.start_from_findings(decoder, head, x)
    memory, _ = decoder.start(torch.tensor(x))
    assert [m.shape for m in memory] == [(8, 8, 98, 64)] * 2
    frontal, lateral = head.weight.split(1024, 1)
    for rows, places, weight in ((slice(0, 28), slice(0, 49), frontal), (slice(28, 56), slice(49, 98), lateral)):
        evidence = torch.tensor(x[:, places]) @ weight.T  # m p n
        first = decoder.encode(torch.tensor(x))[:, places, rows]
        expected = (evidence - evidence.mean((0, 1))) / evidence.std((0, 1)) + .5
        torch.testing.assert_close(first, expected, atol=.02, rtol=.02)


def test_shipped_size():
    "As float16, with a vocabulary of 1,500 words, under 6 MB."
    assert 2 * sum(p.numel() for p in TransformerDecoder(1500).parameters()) < 6e6


def test_it_learns_to_look_at_the_mark():
    """One of 98 places is marked; the report says its kind. Attention must find the place without being told.

    One layer, so that the weights shown are all there are: with two, the first may find the mark, and the last need not
    look again."""
    set_seed(0)
    features, texts, place = marked_studies(256, seed=0)
    vocab = Vocab.from_texts(texts)
    tokens = torch.tensor([vocab.encode(text) for text in texts])
    decoder = TransformerDecoder(len(vocab), hidden=64, heads=4, layers=1, dropout=0.0)
    optimizer = torch.optim.Adam(decoder.parameters(), 2e-3)
    for step in range(100):
        batch = torch.arange(64) + 64 * (step % 3)
        loss = masked_loss(decoder(features[batch], tokens[batch, :-1]), tokens[batch, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoder.eval()
    memory, state = decoder.start(features[192:])
    logits, _, weights = decoder.step(tokens[192:, 0], state, memory)
    assert (logits.argmax(1) == tokens[192:, 1]).float().mean() > 0.9
    assert (weights.argmax(1) == torch.tensor(place[192:])).float().mean() > 0.9

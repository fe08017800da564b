"Bahdanau attention against its formula, the GRU against PyTorch's, and the decoder's two ways of running."
import numpy as np
import pytest
import torch
from fastai.torch_core import set_seed
from torch import nn

from xraycap.attention import AttentionDecoder, BahdanauAttention, gru_step, marked_studies
from xraycap.lstm import masked_loss
from xraycap.text import PAD, SOS, Vocab

V = 12


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return AttentionDecoder(V, torch.randn(V, 300), hidden=32, attention=16).eval()


@pytest.mark.parametrize("size", [1, 8])  # 8: many a tanh is 1 or -1
def test_attention_is_the_formula(size):
    torch.manual_seed(0)
    attention = BahdanauAttention(8, 5)
    h, annotations = size * torch.randn(2, 8), size * torch.randn(2, 7, 8)  # two studies of seven places
    context, weights = attention(h, annotations)
    parts = attention.W.weight, attention.W.bias, attention.U.weight, attention.v.weight[0]
    W, b, U, v = (p.detach().double().numpy() for p in parts)
    for n in range(2):
        a = annotations[n].double().numpy()
        e = np.array([v @ np.tanh(W @ h[n].double().numpy() + b + U @ a_i) for a_i in a])
        alpha = np.exp(e) / np.exp(e).sum()
        np.testing.assert_allclose(weights[n].detach(), alpha, atol=1e-6)
        np.testing.assert_allclose(context[n].detach(), alpha @ a, atol=1e-6 * size)


def test_gru_step_is_pytorchs_gru():
    torch.manual_seed(0)
    cell, x, h = nn.GRUCell(10, 6), torch.randn(4, 10), torch.randn(4, 6)
    gates = nn.functional.linear(x, cell.weight_ih, cell.bias_ih), nn.functional.linear(h, cell.weight_hh, cell.bias_hh)
    ours = gru_step(*gates, h)
    torch.testing.assert_close(ours, cell(x, h))


def step_by_step(decoder, features, tokens):
    "Logits (B, T, V) and attention (B, T, 98), a word at a time."
    memory, state = decoder.start(features)
    steps = []
    for words in tokens.T:
        logits, state, weights = decoder.step(words, state, memory)
        steps.append((logits, weights))
    return tuple(torch.stack(x, 1) for x in zip(*steps))


def test_step_by_step_equals_teacher_forcing(decoder):
    features, tokens = torch.rand(3, 98, 1024), torch.randint(3, V, (3, 6))
    tokens[:, 0] = SOS
    logits, weights = step_by_step(decoder, features, tokens)
    assert weights.shape == (3, 6, 98)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, 6))
    theirs, attention = decoder.forward_with_attention(features, tokens)
    torch.testing.assert_close(logits, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights, attention, atol=1e-5, rtol=1e-5)
    assert torch.equal(decoder(features, tokens), theirs)


def test_memory_is_one_copy_a_study(decoder):
    features, tokens = torch.rand(2, 98, 1024), torch.randint(3, V, (6,))
    memory, _ = decoder.start(features)
    assert [tuple(m.shape) for m in memory] == [(2, 98, 32)]
    h = torch.randn(6, 32)
    logits, _, weights = decoder.step(tokens, (h,), memory)
    for n in range(6):
        alone, _ = decoder.start(features[n // 3:n // 3 + 1])
        expected, _, alone_weights = decoder.step(tokens[n:n + 1], (h[n:n + 1],), alone)
        torch.testing.assert_close(logits[n:n + 1], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(weights[n:n + 1], alone_weights, atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing_before_it(decoder):
    features, tokens = torch.rand(2, 98, 1024), torch.randint(3, V, (2, 5))
    longer = torch.cat([tokens, torch.full((2, 20), PAD)], 1)
    torch.testing.assert_close(decoder(features, longer)[:, :5], decoder(features, tokens))


def test_places_are_told_apart_by_view_row_and_column_only(decoder):
    features, tokens, order = torch.rand(2, 98, 1024), torch.randint(3, V, (2, 5)), torch.randperm(98)
    assert not torch.allclose(decoder(features[:, order], tokens), decoder(features, tokens), atol=1e-4)
    for p in (decoder.view, decoder.row, decoder.column): nn.init.zeros_(p)
    torch.testing.assert_close(decoder(features[:, order], tokens), decoder(features, tokens), atol=1e-4, rtol=1e-4)


def test_a_place_is_its_view_row_and_column():
    "With no features, place 49 + 7 r + c of the memory is the lateral view's vector, row r's and column c's."
    decoder = AttentionDecoder(V, hidden=8, attention=4).eval()
    nn.init.zeros_(decoder.encode.bias)
    (annotations,), _ = decoder.start(torch.zeros(1, 98, 1024))
    for view in range(2):
        for r in range(7):
            for c in range(7):
                expected = decoder.view[view] + decoder.row[r] + decoder.column[c]
                torch.testing.assert_close(annotations[0, 49 * view + 7 * r + c], expected)


def test_gradient_reaches_everything_but_the_embedding(decoder):
    tokens = torch.randint(3, V, (2, 5))
    masked_loss(decoder(torch.rand(2, 98, 1024), tokens), tokens).backward()
    without = {name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert without == {"embedding.weight"}


def test_dropout_only_in_training(decoder):
    x = torch.rand(2, 98, 1024), torch.randint(3, V, (2, 5))
    assert torch.equal(decoder(*x), decoder(*x))
    decoder.train()
    assert not torch.equal(decoder(*x), decoder(*x))


def test_config_rebuilds_in_float16(decoder):
    again = AttentionDecoder(**decoder.config).eval()
    again.load_state_dict({name: p.half() for name, p in decoder.state_dict().items()})
    x = torch.rand(2, 98, 1024), torch.randint(3, V, (2, 5))
    torch.testing.assert_close(again(*x), decoder(*x), atol=.01, rtol=.01)


def test_shipped_size():
    "As float16, with a vocabulary of 1,500 words, well under 12 MB."
    assert 2 * sum(p.numel() for p in AttentionDecoder(1500).parameters()) < 8e6


def test_marked_studies():
    features, texts, place = marked_studies(40, seed=0)
    assert features.shape == (40, 98, 1024) and len(set(texts)) > 10
    for x, text, p in zip(features, texts, place):
        kind, _, view, height = text.split()
        assert x.mean(1).argmax() == p and (x[p, :64] >= 4).all()
        assert view == ("lateral" if p >= 49 else "frontal") and height == ("lower" if p % 49 >= 21 else "upper")
        assert (x[p, 64:].view(15, 64)[["round", "square", "long", "dense"].index(kind)] >= 4).all()


def test_it_learns_to_look_at_the_mark():
    "One of 98 places is marked; the report says its kind. Attention must find the place without being told."
    set_seed(0)
    features, texts, place = marked_studies(256, seed=0)
    vocab = Vocab.from_texts(texts)
    tokens = torch.tensor([vocab.encode(text) for text in texts])[:, :3]  # SOS, the kind, "mark"
    decoder = AttentionDecoder(len(vocab), hidden=64, attention=32, dropout=0.0)
    optimizer = torch.optim.Adam(decoder.parameters(), 2e-3)
    for step in range(60):
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

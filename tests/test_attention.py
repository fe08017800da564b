"Bahdanau attention against its formula, and the decoder's two ways of running against each other."
import numpy as np
import pytest
import torch
from fastai.torch_core import set_seed
from torch import nn
from xraycap.attention import AttentionDecoder, BahdanauAttention, gru_step
from xraycap.lstm import masked_loss
from xraycap.text import EOS, PAD, SOS

V = 12


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return AttentionDecoder(V, torch.randn(V, 300), hidden=32, attention=16).eval()


def test_attention_is_the_formula():
    torch.manual_seed(0)
    attention = BahdanauAttention(8, 5)
    h, annotations = torch.randn(6, 8), torch.randn(2, 7, 8)  # two studies, three hypotheses each, seven places
    context, weights = attention(h, attention.keys(annotations), annotations)
    W, b, U, v = (p.detach().double().numpy() for p in (attention.W.weight, attention.W.bias, attention.U.weight, attention.v.weight[0]))
    for n in range(6):
        a = annotations[n // 3].double().numpy()
        e = np.array([v @ np.tanh(W @ h[n].double().numpy() + b + U @ a_i) for a_i in a])
        alpha = np.exp(e) / np.exp(e).sum()
        np.testing.assert_allclose(weights[n].detach(), alpha, atol=1e-6)
        np.testing.assert_allclose(context[n].detach(), alpha @ a, atol=1e-6)


def test_gru_step_is_pytorchs_gru():
    torch.manual_seed(0)
    cell, x, h = nn.GRUCell(10, 6), torch.randn(4, 10), torch.randn(4, 6)
    ours = gru_step(nn.functional.linear(x, cell.weight_ih, cell.bias_ih), nn.functional.linear(h, cell.weight_hh, cell.bias_hh), h)
    torch.testing.assert_close(ours, cell(x, h))


def test_step_by_step_equals_teacher_forcing(decoder):
    features, tokens = torch.rand(3, 98, 1024), torch.randint(3, V, (3, 6))
    tokens[:, 0] = SOS
    memory, state = decoder.start(features)
    one_by_one = []
    for t in range(6):
        logits, state, weights = decoder.step(tokens[:, t], state, memory)
        one_by_one.append(logits)
        assert weights.shape == (3, 98)
        torch.testing.assert_close(weights.sum(1), torch.ones(3))
    torch.testing.assert_close(torch.stack(one_by_one, 1), decoder(features, tokens), atol=1e-5, rtol=1e-5)


def test_memory_is_one_copy_a_study(decoder):
    features, tokens = torch.rand(2, 98, 1024), torch.randint(3, V, (6,))
    memory, _ = decoder.start(features)
    assert [tuple(m.shape) for m in memory] == [(2, 98, 32), (2, 98, 16)]
    h = torch.randn(6, 32)
    logits, _, weights = decoder.step(tokens, (h,), memory)
    for n in range(6):
        alone, _ = decoder.start(features[n // 3:n // 3 + 1])
        expected, _, look = decoder.step(tokens[n:n + 1], (h[n:n + 1],), alone)
        torch.testing.assert_close(logits[n:n + 1], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(weights[n:n + 1], look, atol=1e-5, rtol=1e-5)


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
    (annotations, _), _ = decoder.start(torch.zeros(1, 98, 1024))
    for view in range(2):
        for r in range(7):
            for c in range(7):
                expected = decoder.view[view] + decoder.row[r] + decoder.column[c]
                torch.testing.assert_close(annotations[0, 49 * view + 7 * r + c], expected)


def test_gradient_reaches_everything_but_the_embedding(decoder):
    tokens = torch.randint(3, V, (2, 5))
    masked_loss(decoder(torch.rand(2, 98, 1024), tokens), tokens).backward()
    without = {name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert without == {'embedding.weight'}


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


def test_it_learns_to_look_at_the_mark():
    "One of 98 places is marked; the word to say is the mark's kind. Attention must find the place without being told."
    set_seed(0)
    rng = np.random.default_rng(0)
    place, kind = rng.integers(0, 98, 256), rng.integers(0, 4, 256)
    features = torch.tensor(rng.random((256, 98, 1024)), dtype=torch.float32)
    for i in range(256): features[i, place[i], [*range(64), *range(64 + 64 * kind[i], 128 + 64 * kind[i])]] += 4.
    words = torch.tensor(kind + 4)
    tokens_in = torch.stack([torch.full_like(words, SOS), words], 1)
    targets = torch.stack([words, torch.full_like(words, EOS)], 1)
    decoder = AttentionDecoder(8, hidden=64, attention=32, dropout=0.)
    optimizer = torch.optim.Adam(decoder.parameters(), 2e-3)
    for step in range(60):
        batch = torch.arange(64) + 64 * (step % 3)
        loss = masked_loss(decoder(features[batch], tokens_in[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoder.eval()
    memory, state = decoder.start(features[192:])
    logits, _, weights = decoder.step(tokens_in[192:, 0], state, memory)
    assert (logits.argmax(1) == words[192:]).float().mean() > .9
    assert (weights.argmax(1) == torch.tensor(place[192:])).float().mean() > .9

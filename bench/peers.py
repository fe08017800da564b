"""What others run, written plainly: the loops that the case study and Show, Attend and Tell describe, a decoder trained step by step,
and a GPT-2 that Hugging Face generates with. `Plain` has our decoder's own weights, so what it says and learns can be compared."""
import torch
from torch import nn

from xraycap.text import EOS, PAD, SOS, UNK


class Plain:
    "Our attention decoder, as the formulas stand: at each step the places are projected anew, tanh, softmax, a sum, a GRU, the output layers."

    def __init__(self, decoder): self.d = decoder

    def start(self, features):
        (annotations, _), state = self.d.start(features)
        return annotations, state

    def step(
        self,
        tokens,  # (N,) previous words
        state,  # h (N, hidden)
        annotations,  # (N, 98, hidden): a copy for each hypothesis
    ):  # logits (N, V), state
        d, a, (h,) = self.d, self.d.attention, state
        e = a.v(torch.tanh(a.W(h)[:, None] + a.U(annotations)))
        context = (e.softmax(1) * annotations).sum(1)
        word = d.drop(d.embedding(tokens))
        x, s = d.word_gates(word) + d.context_gates(context), d.state_gates(h)
        (x_r, x_z, x_n), (s_r, s_z, s_n) = x.chunk(3, 1), s.chunk(3, 1)
        r, z = torch.sigmoid(x_r + s_r), torch.sigmoid(x_z + s_z)
        h = (1 - z) * torch.tanh(x_n + r * s_n) + z * h
        return d.output(d.drop(torch.relu(d.mix(torch.cat([h, context, word], 1))))), (h,)


class CaseStudy(nn.Module):
    "The case study's attention decoder with the sizes of its usual implementations: 512 each, 300 for a word."

    def __init__(self, vocab_size, size=512):
        super().__init__()
        self.encode, self.U, self.W, self.v = nn.Linear(1024, size), nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, 1)
        self.embedding, self.cell, self.output = nn.Embedding(vocab_size, 300), nn.GRUCell(size + 300, size), nn.Linear(size, vocab_size)

    def start(self, features):
        places = torch.relu(self.encode(features))
        return places, (torch.zeros_like(places[:, 0]),)

    def step(self, tokens, state, places):
        weights = self.v(torch.tanh(self.U(places) + self.W(state[0])[:, None])).softmax(1)
        h = self.cell(torch.cat([(weights * places).sum(1), self.embedding(tokens)], 1), state[0])
        return self.output(h), (h,)


class ShowAttendTell(nn.Module):
    "Show, Attend and Tell (Xu et al. 2015) with the sizes of its usual implementation: 512 each; it attends to the features themselves."

    def __init__(self, vocab_size, size=512, places=1024):
        super().__init__()
        self.U, self.W, self.v = nn.Linear(places, size), nn.Linear(size, size), nn.Linear(size, 1)
        self.h, self.c, self.gate = nn.Linear(places, size), nn.Linear(places, size), nn.Linear(size, places)
        self.embedding, self.cell, self.output = nn.Embedding(vocab_size, size), nn.LSTMCell(size + places, size), nn.Linear(size, vocab_size)

    def start(self, features):
        mean = features.mean(1)
        return features, (self.h(mean), self.c(mean))

    def step(self, tokens, state, places):
        h, c = state
        weights = self.v(torch.relu(self.U(places) + self.W(h)[:, None])).softmax(1)
        context = torch.sigmoid(self.gate(h)) * (weights * places).sum(1)
        h, c = self.cell(torch.cat([self.embedding(tokens), context], 1), (h, c))
        return self.output(h), (h, c)


def plain_loss(
    decoder,  # AttentionDecoder
    features,  # (B, 98, 1024) float32
    tokens_in,  # (B, T)
    tokens_out,  # (B, T)
):  # scalar: nats a word
    "Teacher forcing one step after the other, each with its own output layer and its own loss, as the usual tutorials have it."
    model = Plain(decoder)
    annotations, state = model.start(features)
    total = 0.
    for tokens, words in zip(tokens_in.T, tokens_out.T):
        logits, state = model.step(tokens, state, annotations)
        total = total + nn.functional.cross_entropy(logits, words, ignore_index=PAD, reduction="sum")
    return total / (tokens_out != PAD).sum()


def _said(logits):
    "log-probabilities of the words that may be said"
    logits[:, [PAD, SOS, UNK]] = -torch.inf
    return logits.log_softmax(-1)


@torch.inference_mode()
def case_study_search(
    model,  # `start` and `step`
    features,  # (98, 1024) of one study
    k=3,
    max_len=60,
):  # the words of the best report
    "The case study's loop: one image, and at every step one hypothesis at a time through the decoder, in Python lists."
    places, state = model.start(features[None])
    live, done = [([SOS], 0., state)], []
    for _ in range(max_len):
        candidates = []
        for words, logp, state in live:
            logits, state = model.step(torch.tensor(words[-1:]), state, places)
            best, which = _said(logits)[0].topk(k)
            candidates += [(words + [w], logp + p, state) for p, w in zip(best.tolist(), which.tolist())]
        best = sorted(candidates, key=lambda c: -c[1])[:k - len(done)]
        done += [c for c in best if c[0][-1] == EOS]
        live = [c for c in best if c[0][-1] != EOS]
        if not live: break
    words = max(done + live, key=lambda c: c[1] / (len(c[0]) - 1))[0]
    return [w for w in words[1:] if w != EOS]


@torch.inference_mode()
def show_attend_tell_search(
    model,  # `start` and `step`
    features,  # (98, 1024) of one study
    k=3,
    max_len=60,
):  # the words of the best report
    "Show, Attend and Tell's loop: one image, its places copied for each hypothesis, the hypotheses as a batch."
    places, state = model.start(features[None])
    places, state = places.expand(k, -1, -1).contiguous(), tuple(s.expand(k, -1) for s in state)
    sequences, scores, done = torch.full((k, 1), SOS), torch.zeros(k, 1), []
    for step in range(1, max_len + 1):
        logits, state = model.step(sequences[:, -1], state, places)
        totals = scores + _said(logits)
        totals = totals[0] if step == 1 else totals.flatten()  # at first all hypotheses are alike
        scores, choice = totals.topk(len(scores))
        parent, word = choice // logits.shape[1], choice % logits.shape[1]
        sequences = torch.cat([sequences[parent], word[:, None]], 1)
        ended = (word == EOS) | (step == max_len)
        done += [(s, score / step) for s, score in zip(sequences[ended].tolist(), scores[ended].tolist())]
        if ended.all(): break
        live = parent[~ended]
        sequences, scores, places, state = sequences[~ended], scores[~ended][:, None], places[live], tuple(s[live] for s in state)
    words = max(done, key=lambda c: c[1])[0]
    return [w for w in words[1:] if w != EOS]


def gpt2(vocab_size):
    "GPT-2 of six layers with cross-attention, random weights."
    from transformers import GPT2Config, GPT2LMHeadModel
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_layer=6, add_cross_attention=True, n_positions=64,
                                      bos_token_id=SOS, eos_token_id=EOS, pad_token_id=PAD)).eval()


@torch.inference_mode()
def gpt2_search(
    model,  # of `gpt2`
    places,  # (B, 98, 768)
    k=3,
    max_len=60,
):  # (B, max_len) words
    "Hugging Face's own beam search, with its cache of keys and values; no report ends before `max_len`."
    words = model.generate(torch.full((len(places), 1), SOS), encoder_hidden_states=places, num_beams=k, do_sample=False,
                           max_new_tokens=max_len, min_new_tokens=max_len, use_cache=True)
    return words[:, 1:]

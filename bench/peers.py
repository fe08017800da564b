"""What others run, written plainly: the loops that the case study and Show, Attend and Tell describe, and a GPT-2 that
Hugging Face generates with. The loops search on any decoder of the book, or on a published one, so that what they say
can be compared with ours."""
import torch
from torch import nn

from xraycap.search import word_logp
from xraycap.text import EOS, PAD, SOS


class CaseStudy(nn.Module):
    "The case study's attention decoder with the sizes of its usual implementations: 512 each, 300 for a word."

    def __init__(self, vocab_size, size=512):
        super().__init__()
        self.encode, self.v = nn.Linear(1024, size), nn.Linear(size, 1)
        self.U, self.W = nn.Linear(size, size), nn.Linear(size, size)
        self.embedding, self.cell = nn.Embedding(vocab_size, 300), nn.GRUCell(size + 300, size)
        self.output = nn.Linear(size, vocab_size)

    def start(self, features):
        places = torch.relu(self.encode(features))
        return (places,), (torch.zeros_like(places[:, 0]),)

    def step(self, tokens, state, memory):
        places, = memory
        weights = self.v(torch.tanh(self.U(places) + self.W(state[0])[:, None])).softmax(1)
        h = self.cell(torch.cat([(weights * places).sum(1), self.embedding(tokens)], 1), state[0])
        return self.output(h), (h,), weights


class ShowAttendTell(nn.Module):
    "Show, Attend and Tell (Xu et al. 2015) with its usual sizes, 512 each; it attends to the features themselves."

    def __init__(self, vocab_size, size=512, places=1024):
        super().__init__()
        self.U, self.W, self.v = nn.Linear(places, size), nn.Linear(size, size), nn.Linear(size, 1)
        self.h, self.c, self.gate = nn.Linear(places, size), nn.Linear(places, size), nn.Linear(size, places)
        self.embedding, self.cell = nn.Embedding(vocab_size, size), nn.LSTMCell(size + places, size)
        self.output = nn.Linear(size, vocab_size)

    def start(self, features):
        mean = features.mean(1)
        return (features,), (self.h(mean), self.c(mean))

    def step(self, tokens, state, memory):
        (h, c), (places,) = state, memory
        weights = self.v(torch.relu(self.U(places) + self.W(h)[:, None])).softmax(1)
        context = torch.sigmoid(self.gate(h)) * (weights * places).sum(1)
        h, c = self.cell(torch.cat([self.embedding(tokens), context], 1), (h, c))
        return self.output(h), (h, c), weights


@torch.inference_mode()
def case_study_search(
    model,  # `start` and `step`
    features,  # (98, 1024) of one study
    k=3,
    max_len=60,
):  # the words of the best report
    "The case study's loop: one image, and at every step one hypothesis at a time through the decoder, in Python lists."
    memory, state = model.start(features[None])
    live, done = [([SOS], 0., state)], []
    for _ in range(max_len):
        candidates = []
        for words, logp, state in live:
            logits, state, _ = model.step(torch.tensor(words[-1:]), state, memory)
            best, which = word_logp(logits)[0].topk(k)
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
    memory, state = (tuple(x.repeat_interleave(k, 0) for x in part) for part in model.start(features[None]))
    sequences, scores, done = torch.full((k, 1), SOS), torch.zeros(k, 1), []
    for step in range(1, max_len + 1):
        logits, state, _ = model.step(sequences[:, -1], state, memory)
        totals = scores + word_logp(logits)
        totals = totals[0] if step == 1 else totals.flatten()  # at first all hypotheses are alike
        scores, choice = totals.topk(len(scores))
        parent, word = choice // logits.shape[1], choice % logits.shape[1]
        sequences = torch.cat([sequences[parent], word[:, None]], 1)
        ended = (word == EOS) | (step == max_len)
        done += [(s, score / step) for s, score in zip(sequences[ended].tolist(), scores[ended].tolist())]
        if ended.all(): break
        live = parent[~ended]
        sequences, scores = sequences[~ended], scores[~ended][:, None]
        memory, state = (tuple(x[live] for x in part) for part in (memory, state))
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
    words = model.generate(torch.full((len(places), 1), SOS), encoder_hidden_states=places, num_beams=k,
                           do_sample=False, max_new_tokens=max_len, min_new_tokens=max_len, use_cache=True)
    return words[:, 1:]

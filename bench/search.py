"""Searching: reports a second of the attention decoder, against its own arithmetic, two loops, and GPT-2.

Every report has 60 words."""
import torch

from bench import peers
from bench.common import rates, rounds, row
from bench.limit import product
from xraycap.attention import AttentionDecoder
from xraycap.fast import beam_search, greedy_search
from xraycap.files import assets
from xraycap.text import EOS, Vocab

BATCH, K, LENGTH = 64, 3, 60


def random_decoder(vocab_size):
    "An attention decoder with random weights that never ends a report before its 60 words."
    torch.manual_seed(0)
    model = AttentionDecoder(vocab_size).eval()
    model.output.bias.data[EOS] = -1e4
    return model


def random_features(n):
    "(n, 98, 1024), like what a network with ReLU gives."
    return torch.randn(n, 98, 1024, generator=torch.Generator().manual_seed(1)).relu_()


def report_flop(d, k=K, length=LENGTH):
    """What one report costs by the decoder's equations, the places projected once: two operations for each weight and
    row; add, tanh, multiply, add for each number scored."""
    hidden, size, words = d.state_gates.in_features, d.attention.W.out_features, d.embedding.embedding_dim
    once = 98 * 2 * hidden * (1024 + size) + 2 * hidden * hidden  # annotations, keys, first state
    gates = 2 * 3 * hidden * (words + 2 * hidden)
    attend = 2 * hidden * size + 98 * (4 * size + 2 * hidden)
    output = 2 * hidden * (2 * hidden + words + d.output.out_features)
    return once + (1 + k * (length - 1)) * (gates + attend + output)  # at the first step there is one hypothesis


def measure(limit):
    decoder = random_decoder(len(Vocab.load(assets / "attention" / "vocab.json")))
    x, places = random_features(BATCH), torch.randn(16, 98, 768)  # GPT-2 gets no quicker with more
    (multiply, gflop), V = product(), decoder.output.out_features
    published, tell, other = peers.CaseStudy(V).eval(), peers.ShowAttendTell(V).eval(), peers.gpt2(V)
    for model in (published, tell): model.output.bias.data[EOS] = -1e4

    def two(search, model): return lambda: [search(model, x[i]) for i in range(2)]

    rivals = {  # how many reports, and what writes them
        "beam": (BATCH, lambda: beam_search(decoder, x)),
        "greedy": (BATCH, lambda: greedy_search(decoder, x)),
        "one": (4, lambda: [beam_search(decoder, x[i:i + 1]) for i in range(4)]),
        "case study": (2, two(peers.case_study_search, decoder)),
        "case study published": (2, two(peers.case_study_search, published)),
        "tell": (2, two(peers.show_attend_tell_search, decoder)),
        "tell published": (2, two(peers.show_attend_tell_search, tell)),
        "gpt2": (len(places), lambda: peers.gpt2_search(other, places)),
        "product": (4 * gflop / (report_flop(decoder) / 1e9), lambda: [multiply() for _ in range(4)])}
    seconds = rounds({name: f for name, (_, f) in rivals.items()}, 3)
    rate = {name: rates(seconds[name], n) for name, (n, _) in rivals.items()}
    against = [("what its arithmetic allows", rate["product"], 0.55), ("the case study's loop", rate["case study"], 40),
               ("Show-Attend-Tell loop", rate["tell"], 40),
               ("the case study, its own sizes", rate["case study published"], 40),
               ("Show-Attend-Tell, its own sizes", rate["tell published"], 40),
               ("GPT-2, Hugging Face generate", rate["gpt2"], 60)]
    return [row("beam search, k=3, batch 64", "reports/s", rate["beam"], *rest) for rest in against] + [
        row("beam search, k=3, batch 1", "reports/s", rate["one"], "batch 64", rate["beam"], 0.25),
        row("greedy search, batch 64", "reports/s", rate["greedy"], "beam search", rate["beam"], 2)]

"Batches: every study once, features beside their own words, padding only at the end."
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.learner import Learner
from xraycap.batches import batches_of_like_length, caption_dls, show_studies, study_block
from xraycap.encoder import pool_views
from xraycap.phantom import study_views
from xraycap.studies import load_studies
from xraycap.text import EOS, PAD, SOS, Vocab, clean_chen

N = 50


@pytest.fixture(scope="module")
def data():
    "Study i says its own name, then i % 17 times 'clear'; its features are all i, the lateral half -i."
    studies = pd.DataFrame(dict(uid=range(N), findings=[f"study{i}" + " clear" * (i % 17) for i in range(N)],
                                split=["train"] * (N - 10) + ["val"] * 9 + ["test"]))
    store = {i: np.repeat([i, -i], 49)[:, None] * np.ones((1, 1024), np.float16) for i in range(N)}
    return studies, store, Vocab.from_texts(studies.findings)


def loaders(data, **kwargs):
    return caption_dls(*data, clean=str, bs=8, device="cpu", **kwargs)


def test_every_study_once_with_its_own_words(data):
    studies, _, vocab = data
    dls = loaders(data)
    for dl, part in ((dls.train, "train"), (dls.valid, "val")):
        seen = []
        for features, _, tokens_out in dl:
            assert features.dtype == torch.float32 and features.shape[1:] == (98, 1024)
            for i, words in zip(features[:, 0, 0].int().tolist(), tokens_out):
                assert vocab.decode(words.tolist()) == studies.findings[i]
                seen.append(i)
            assert (features[:, 49:] == -features[:, :49]).all()
        assert sorted(seen) == studies.uid[studies.split == part].tolist()
    assert seen == studies.uid[studies.split == "val"].tolist()  # validation keeps its order


def test_inputs_are_outputs_one_word_later(data):
    for _, tokens_in, tokens_out in loaders(data).train:
        assert (tokens_in[:, 0] == SOS).all()
        for before, after in zip(tokens_in.tolist(), tokens_out.tolist()):
            n = after.index(EOS) + 1
            assert before[1:n] == after[:n - 1]
            assert set(before[n:]) | set(after[n:]) <= {PAD}
        assert (tokens_out != PAD).any(0).all()  # no column of padding only


def test_shuffled_batches_hold_reports_of_like_length(data):
    dl = loaders(data).train
    batches = [(out != PAD).sum(1) for _, _, out in dl]
    assert max(lengths.max() - lengths.min() for lengths in batches) <= 5  # of 17; 40 studies sort into 5 batches of 8
    first, second = ([out[:, 0].tolist() for _, _, out in dl] for _ in range(2))
    assert first != second


def test_batches_of_like_length_keep_every_index():
    "Each run of 8 batches is sorted, and no index moves to another run."
    rng = np.random.default_rng(0)
    order, lengths = rng.permutation(37).tolist(), rng.integers(1, 60, 37)
    batches = batches_of_like_length(order, lengths.__getitem__, 2)
    assert [len(batch) for batch in batches] == [2] * 18 + [1]
    flat = [i for batch in batches for i in batch]
    for start in range(0, 37, 16):
        assert sorted(flat[start:start + 16]) == sorted(order[start:start + 16])
        assert (np.diff(lengths[flat[start:start + 16]]) >= 0).all()


def test_long_reports_are_cut(data):
    longest = max(out.shape[1] for _, _, out in loaders(data, max_len=5).train)
    assert longest == 6  # five words and EOS


def test_pooled_is_each_views_mean(data):
    spatial = np.random.default_rng(0).random((98, 1024)).astype(np.float16)
    pooled = pool_views(spatial)
    assert pooled.dtype == np.float32 and pooled.shape == (2048,)
    expected = [np.mean([float(x) for x in spatial[a:b, c]]) for a, b in ((0, 49), (49, 98)) for c in range(1024)]
    np.testing.assert_allclose(pooled, expected, rtol=1e-5)
    features, _, _ = loaders(data, pooled=True).valid.one_batch()
    assert features.shape == (8, 2048) and (features[0, :1024] == N - 10).all()


def test_a_store_may_hold_vectors(data):
    studies, store, vocab = data
    vectors = {uid: pool_views(spatial) for uid, spatial in store.items()}
    spatial, pooled = (loaders((studies, o, vocab), pooled=True).valid.one_batch() for o in (store, vectors))
    for a, b in zip(spatial, pooled): assert torch.equal(a, b)


def test_learner_gives_two_parts_to_the_model(data):
    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, features, tokens):
            assert features.shape == (len(tokens), 98, 1024) and (tokens[:, 0] == SOS).all()
            return self.weight.expand(*tokens.shape, len(data[2]))
    learn = Learner(loaders(data), Spy(), lambda logits, targets: logits.mean())
    assert learn.validate() == [0]


def test_a_missing_part_is_named(data):
    studies, store, vocab = data
    with pytest.raises(ValueError, match="'val'"): caption_dls(studies[studies.split == "train"], store, vocab)


def test_block_of_two_images_and_a_report():
    studies = load_studies()
    studies = studies[studies.split.isin(["train", "val"])].iloc[:6].reset_index(drop=True)
    studies["split"] = ["train", "val", "train", "train", "val", "train"]
    vocab = Vocab.from_texts(studies.findings.map(clean_chen))
    dls = study_block(studies, vocab).dataloaders(studies, bs=2, num_workers=0, device="cpu")
    frontal, lateral, tokens = dls.valid.one_batch()
    assert dls.n_inp == 2 and frontal.shape == lateral.shape == (2, 1, 224, 224)
    for i, row in enumerate((1, 4)):
        views = study_views(studies.iloc[row])
        np.testing.assert_allclose(frontal[i, 0] * 255, views[0], atol=.01)
        np.testing.assert_allclose(lateral[i, 0] * 255, views[1], atol=.01)
        assert vocab.decode(tokens[i]).split() == clean_chen(studies.findings[row]).split()[:60] and tokens[i, 0] == SOS
    show_studies((frontal, lateral, tokens), vocab)
    assert len(plt.gcf().axes) == 6
    plt.close("all")


@pytest.mark.parametrize("pooled", [False, True])
def test_show_batch_writes_the_words(data, pooled):
    dls = loaders(data, pooled=pooled)
    batch = dls.valid.one_batch()
    dls.show_batch(batch, max_n=2)
    shown = [t.get_text().replace("\n", " ") for ax in plt.gcf().axes for t in ax.texts]
    assert shown == [data[2].decode(words) for words in batch[2][:2]]
    plt.close("all")

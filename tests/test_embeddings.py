"Word vectors: trained, read from files of the true formats, put in the vocabulary's order"
import struct

import numpy as np
import pytest
import torch

from xraycap.embeddings import embedding_matrix, load_vectors, train_fasttext
from xraycap.studies import load_studies
from xraycap.text import Vocab, clean_chen

TEXTS = ["the heart is normal in size .", "no pleural effusion or pneumothorax .", "the lungs are clear ."] * 5
WORDS = ["heart", "lungs", "pneumothorax", "."]
DIM, BUCKET, MIN_N, MAX_N = 6, 50, 3, 5


def fnv(text):
    "FastText's hash: 32-bit FNV-1a with signed bytes"
    h = 2166136261
    for byte in text.encode(): h = ((h ^ (byte - 256 if byte > 127 else byte) & 0xFFFFFFFF) * 16777619) & 0xFFFFFFFF
    return h


def subwords(word):
    word = f"<{word}>"
    return [word[i:i+n] for i in range(len(word)) for n in range(MIN_N, MAX_N + 1) if i + n <= len(word)]


def write_bin(path, version=12):
    "FastText's binary format, written byte by byte; returns the input matrix"
    rows = np.random.default_rng(0).normal(size=(len(WORDS) + BUCKET, DIM)).astype("<f4")
    out = struct.pack("<2i", 793712314, version)
    loss, model = 2, 2  # negative sampling, skip-gram
    out += struct.pack("<12id", DIM, 5, 5, 1, 5, 1, loss, model, BUCKET, MIN_N, MAX_N, 100, 1e-4)
    out += struct.pack("<3i2q", len(WORDS), len(WORDS), 0, 40, -1)
    for word in WORDS: out += word.encode() + b"\0" + struct.pack("<qb", 10, 0)
    out += struct.pack("<?2q", False, *rows.shape) + rows.tobytes()
    out += struct.pack("<?2q", False, len(WORDS), DIM) + np.zeros((len(WORDS), DIM), "<f4").tobytes()
    path.write_bytes(out)
    return rows


def write_vec(path):
    rows = np.random.default_rng(1).normal(size=(len(WORDS), DIM)).round(4)
    lines = [f"{len(WORDS)} {DIM}"] + [f"{w} {' '.join(map(str, row))}" for w, row in zip(WORDS, rows)]
    path.write_text("\n".join(lines) + "\n")
    return rows.astype(np.float32)


def test_training_is_repeatable():
    first, second, other = (train_fasttext(TEXTS, dim=20, epochs=3, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.vectors, second.vectors) and not np.array_equal(first.vectors, other.vectors)
    assert first["heart"].shape == (20,) and first["heart"].dtype == np.float32
    assert np.abs(first["hearts"]).sum() > 0  # an unknown word


def test_training_puts_exchangeable_words_together():
    texts = load_studies().query("split == 'train'").findings.map(clean_chen)
    vectors = train_fasttext(texts[:600], dim=50, epochs=10)
    others = [vectors.similarity("left", w) for w in ("heart", "normal", "effusion", "clear")]
    assert vectors.similarity("left", "right") > max(others)
    assert "effusions" in [w for w, _ in vectors.most_similar("effusion", topn=3)]


@pytest.mark.parametrize("texts", [[], [""], ["", "  "]])
def test_training_needs_text(texts):
    with pytest.raises(ValueError): train_fasttext(texts)


@pytest.mark.parametrize("version", [11, 12])
def test_bin_file(tmp_path, version):
    rows = write_bin(tmp_path / "a.bin", version)
    vectors = load_vectors(tmp_path / "a.bin")
    assert vectors.vector_size == DIM and list(vectors.key_to_index) == WORDS
    for word in WORDS + ["hearts", "pneumothoraces", "cœur"]:  # its own row, if any, and its subwords, averaged
        used = [rows[WORDS.index(word)]] if word in WORDS else []
        used += [rows[len(WORDS) + fnv(s) % BUCKET] for s in subwords(word)]
        assert vectors[word] == pytest.approx(np.mean(used, axis=0), abs=1e-5)


def test_vec_file(tmp_path):
    rows = write_vec(tmp_path / "a.vec")
    vectors = load_vectors(str(tmp_path / "a.vec"))
    for word, row in zip(WORDS, rows): assert vectors[word] == pytest.approx(row, abs=1e-6)
    assert "hearts" not in vectors


def test_matrix_of_a_vec_file(tmp_path):
    rows = write_vec(tmp_path / "a.vec")
    vectors, vocab = load_vectors(tmp_path / "a.vec"), Vocab(["lungs", "unheard", "heart", "unseen"])
    matrix = embedding_matrix(vocab, vectors)
    assert matrix.shape == (8, DIM) and matrix.dtype == torch.float32
    assert matrix[0].abs().sum() == 0
    assert matrix[4].numpy() == pytest.approx(rows[1], abs=1e-6)
    assert matrix[6].numpy() == pytest.approx(rows[0], abs=1e-6)
    strangers = matrix[[1, 2, 3, 5, 7]]
    assert len(strangers.unique(dim=0)) == 5  # each its own
    assert strangers.norm(dim=1).numpy() == pytest.approx(np.linalg.norm(rows, axis=1).mean(), rel=1e-5)
    reordered = embedding_matrix(Vocab(["unseen", "unheard"]), vectors)
    assert torch.equal(reordered[4], matrix[7]) and torch.equal(reordered[5], matrix[5])  # it depends on the word alone


def test_matrix_of_a_bin_file_uses_subwords(tmp_path):
    rows = write_bin(tmp_path / "a.bin")
    matrix = embedding_matrix(Vocab(["hearts", "heart"]), load_vectors(tmp_path / "a.bin"))
    expected = np.mean([rows[len(WORDS) + fnv(s) % BUCKET] for s in subwords("hearts")], axis=0)
    assert matrix[4].numpy() == pytest.approx(expected, abs=1e-5)
    assert matrix[0].abs().sum() == 0 and (matrix[1:].norm(dim=1) > 0).all()


@pytest.mark.parametrize("content", [
    b"2 3\nlu\xffng 1 2 3\nheart 4 5 6\n", b"\xef\xbb\xbf2 3\nlung 1 2 3\nheart 4 5 6\n"])
def test_a_word_that_is_not_utf8_and_a_mark_before_the_first(tmp_path, content):
    (tmp_path / "a.vec").write_bytes(content)
    vectors = load_vectors(tmp_path / "a.vec")
    assert vectors["heart"].tolist() == [4, 5, 6] and len(vectors) == 2
    assert vectors.vectors[0].tolist() == [1, 2, 3] and vectors.index_to_key[0] in ("lung", "lu\ufffdng")


def bad_files(folder):
    write_bin(folder / "good.bin")
    write_vec(folder / "good.vec")
    binary, text = (folder / "good.bin").read_bytes(), (folder / "good.vec").read_text()
    huge = bytearray(binary)
    huge[8:12] = struct.pack("<i", 2**31 - 1)
    page = b"<html>not found</html>"
    contents = {
        "empty.bin": b"", "empty.vec": b"", "page.vec": page, "page.bin": page * 20, "cut.bin": binary[:400],
        "tail.bin": binary[:-200], "huge.bin": bytes(huge), "huge.vec": b"99999999999 300\na 1 2\n",
        "cut.vec": text[:60].encode(), "ragged.vec": text.replace(text.split()[4], "").encode(),
        "words.vec": text.replace(text.split()[3], "nonsense").encode(), "none.vec": b"0 300\n",
        "negative.vec": b"-1 -3\na 1 2 3\n", "nan.vec": b"1 2\na nan 1\n",
        "vectors.zip": b"PK\3\4", "word2vec.bin": b"2 3\nab " + b"\0" * 60}
    for name, content in contents.items(): (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def test_bad_files_give_one_sentence(tmp_path):
    for path in bad_files(tmp_path):
        with pytest.raises(ValueError) as error: load_vectors(path)
        assert path.name in str(error.value) and "\n" not in str(error.value), path.name


def test_missing_file(tmp_path):
    for path in (tmp_path / "none.bin", tmp_path):
        with pytest.raises(FileNotFoundError): load_vectors(path)

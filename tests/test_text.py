"The two cleanings, the vocabulary and the way back to sentences"
import random
import time

import pytest

from xraycap.reports import load_reports
from xraycap.studies import load_studies
from xraycap.text import CLEANING_STEPS, EOS, PAD, SOS, UNK, Vocab, clean_chen, clean_findings, one_line, sentences


@pytest.fixture(scope="module")
def findings(): return load_studies().findings


def test_no_letter_is_lost():
    text = "Pneumothorax. Bony thorax. Hypoexpanded apex, maxilla."
    assert clean_findings(text) == "pneumothorax . bony thorax . hypoexpanded apex maxilla ."


def test_each_step_does_what_its_name_says():
    steps = {step.__name__: step for step in CLEANING_STEPS}
    assert steps.pop("lower")("No XXXX") == "no xxxx"
    assert steps.pop("write_out_contractions")("it won't, can’t, isn't") == "it will not, cannot, is not"
    assert steps.pop("remove_marks")("axis XX xx xxxx").split() == ["axis", "XX"]
    assert steps.pop("remove_numbers")("3.5 cm, 2-3 of 10.") == "  cm,  -  of  ."
    assert steps.pop("remove_punctuation")("t-spine (nodule/mass).") == "tspine nodule mass."
    assert steps.pop("remove_short_words")("there is no air in it.") == "there no air ."
    assert steps.pop("remove_repeated_stops")(". clear . . no effusion .") == "clear . no effusion ."
    assert not steps


@pytest.mark.parametrize("mark", ["XXXX", "XX", "xxxx", "XXXXXXXX", "(XXXX)", "XXXX/XXXX", "XXXX-A-XXXX", "4XXXX"])
def test_marks_are_removed(mark):
    assert clean_findings(f"stable {mark} nodule.") == "stable nodule ."


@pytest.mark.parametrize("short, words", [
    ("isn't", "not"), ("won't", "will not"), ("can't", "cannot"), ("there's", "there"), ("they're", "they are"),
    ("hasn’t", "has not"), ("I've", "have"), ("it'll", "will"), ("wouldn't", "would not")])
def test_contractions(short, words):
    assert clean_findings(f"{short} seen") == f"{words} seen"


def test_numbers_and_short_words():
    assert clean_findings("A 1.2 cm nodule, 2-3 mm, at L2-L3. No air in it.") == "nodule . no air ."


def test_stops_and_spaces_collapse():
    text = " ..  Clear lungs. . .\t No  effusion...Heart normal. "
    assert clean_findings(text) == "clear lungs . no effusion . heart normal ."


def test_clean_findings_is_only_plain_tokens(findings):
    for text in findings.map(clean_findings):
        tokens = text.split(" ") if text else []
        words = [t for t in tokens if t not in {".", "no"}]
        assert all(w.isascii() and w.isalpha() and w.islower() and len(w) > 2 for w in words)
        assert ". ." not in text and not text.startswith(".")


def test_cleaning_twice_changes_nothing(findings):
    once = findings.map(clean_findings)
    assert (once.map(clean_findings) == once).all()


def test_number_of_words_is_near_the_case_study(findings):
    rng = random.Random(0)
    part = findings[[rng.random() < .8 for _ in findings]].map(clean_findings)
    assert abs(len({w for t in part for w in t.split()}) - 1424) < 60


def test_all_reports_in_two_seconds():
    texts = load_reports().findings
    assert len(texts) == 3955
    start = time.process_time()
    texts.map(clean_findings), texts.map(clean_chen)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("text, tokens", [
    # what R2Gen's evaluation prints for these, run once on each of them
    ("Heart size normal. Lungs clear.", "heart size normal . lungs clear ."),
    ("1. Clear lungs. 2. No (acute) disease, effusion; or mass? 3. Normal",
     "clear lungs . no acute disease effusion or mass . normal ."),
    ("No displaced rib fractures visualized. .", "no displaced rib fractures visualized . ."),
    ("XXXX-sided PICC at T11. The ratio is 16.2/24.7.", "xxxx-sided picc at t1the ratio is 162247 ."),
    ("Stable 1.2 cm nodule.. There's \"air\" [left] {right} 50% a_b c+d e&f g*h i:j <k>",
     "stable 12 cm nodule . theres air left right 50 ab cd ef gh ij k ."),
    ("Both lungs clear...Heart normal", "both lungs clearheart normal ."),
])
def test_clean_chen(text, tokens):
    assert clean_chen(text) == tokens


@pytest.mark.parametrize("space", ["\n", "\r\n", "\n\n", "\t", "\u00a0", " \n ", "\u2028"])
def test_any_white_space_after_a_stop_ends_the_sentence(space):
    assert clean_chen(f"No pneumothorax.{space}The heart is large.") == "no pneumothorax . the heart is large ."


@pytest.mark.parametrize("text, line", [
    ("one line", "one line"), ("- 3 mm nodule", "- 3 mm nodule"), ("", ""),
    ("No effusion\nScar", "No effusion. Scar"), ("- No effusion\n- scar", "No effusion. scar"),
    ("FINDINGS:\n1. Scar,\nold\n\n2) clear", "FINDINGS: Scar, old. clear"),
    (f"{'long ' * 12}line\nwrapped", f"{'long ' * 12}line wrapped"),
    (f"{'long ' * 12}line\nEnded", f"{'long ' * 12}line. Ended"), ("short line\nended", "short line. ended")])
def test_one_line(text, line): assert one_line(text) == line


def test_clean_chen_always_ends_with_a_stop(findings):
    texts = findings.map(clean_chen)
    assert texts.str.endswith(" .").all() and not texts.str.contains("  ").any() and clean_chen("") == ""


def test_half_of_the_test_reports_occur_in_train():
    studies = load_studies()
    texts = studies.findings.map(clean_chen)
    share = texts[studies.split == "test"].isin(set(texts[studies.split == "train"])).mean()
    assert round(share, 2) == .47


def test_vocab_numbers():
    assert (PAD, SOS, EOS, UNK) == (0, 1, 2, 3)
    vocab = Vocab(["heart", "normal", "."])
    assert vocab.itos[:4] == ["<pad>", "<sos>", "<eos>", "<unk>"] and len(vocab) == 7
    assert vocab.stoi == {w: i for i, w in enumerate(vocab.itos)}
    assert vocab.encode("heart normal big .") == [1, 4, 5, 3, 6, 2]
    assert vocab.encode("") == [SOS, EOS]
    assert vocab.encode("heart " * 100) == [SOS] + [4] * 60 + [EOS]


def test_vocab_order_and_min_count():
    texts = ["b a a", "c b a", "<unk> c"]
    assert Vocab.from_texts(texts).itos[4:] == ["a", "b", "c"]
    assert Vocab.from_texts(texts, min_count=3).itos[4:] == ["a"]
    assert Vocab.from_texts(reversed(texts)).itos == Vocab.from_texts(texts).itos


def test_vocab_round_trip(findings):
    texts = findings.map(clean_chen)
    vocab = Vocab.from_texts(texts)
    assert all(vocab.decode(vocab.encode(t, max_len=1000)) == t for t in texts)


def test_decode_takes_tensors_and_stops_at_eos():
    import torch
    vocab = Vocab(["a", "b"])
    assert vocab.decode(torch.tensor([SOS, 4, PAD, 5, 3, EOS, 4])) == "a b <unk>"


def test_vocab_file(tmp_path):
    path = tmp_path / "vocab.json"
    vocab = Vocab(["é", "b"])
    vocab.save(path)
    assert Vocab.load(path).itos == vocab.itos
    with pytest.raises(FileNotFoundError): Vocab.load(tmp_path / "none.json")


@pytest.mark.parametrize("content", [
    b"", b"not json", b'{"a": 1}', b'["a", "b"]', b'["<pad>", "<sos>", "<eos>", "<unk>", 3]', b"\xff\xfe\x00",
    b'["<pad>", "<sos>", "<eos>", "<unk>", "a", "a"]'])
def test_bad_vocab_file(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error: Vocab.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) > 20


def test_sentences():
    text = "the heart is normal in size . no pneumothorax ."
    assert sentences(text) == ["The heart is normal in size.", "No pneumothorax."]
    assert sentences("t-spine normal . 12 cm nodule") == ["T-spine normal.", "12 cm nodule."]
    assert sentences("") == [] == sentences(" . .")

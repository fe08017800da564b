"The command line as a user meets it: results on standard output, mistakes as one sentence and exit code 2."
import csv
import gzip
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import write_dicom
from PIL import Image
from typer.testing import CliRunner

import xraycap
from xraycap.cli import app
from xraycap.files import room_for, whole_file


def run(*args): return CliRunner().invoke(app, [str(a) for a in args])


def program(*args, cwd=None):
    command = [sys.executable, "-m", "xraycap.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def png(path, size=(64, 64)):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, size, dtype="uint8")).save(path)
    return path


def huge_png(path):
    "A PNG whose header claims 80,000 x 80,000 pixels and has none of them."
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 80_000, 80_000, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def truncated_png(path):
    whole = png(path, (300, 300)).read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    return path


def text_file(path):
    path.write_text("not an image")
    return path


def empty_file(path):
    path.touch()
    return path


def folder(path):
    path.mkdir()
    return path


def one_pixel(path): return png(path, (1, 1))


def nothing(path): return path


def one_sentence(result):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert result.stderr.startswith("xraycap: ")
    return result.stderr


@pytest.mark.parametrize("make", [text_file, empty_file, truncated_png, one_pixel, huge_png, folder, nothing])
def test_an_image_that_cannot_be_used(tmp_path, make):
    bad, good, out = make(tmp_path / "bad.png"), png(tmp_path / "good.png"), tmp_path / "out"
    assert "bad.png" in one_sentence(run("report", bad, "--out", out))
    assert "bad.png" in one_sentence(run("report", good, bad, "--out", out))
    assert list(out.iterdir()) == []


def test_a_mistake_as_a_program(tmp_path):
    result = program("report", "missing.png", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert "missing.png" in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [
    ["--nope"], ["a.png", "b.png", "c.png"], ["--beam", "0"], ["--beam", "many"], ["--model"]])
def test_options_that_do_not_exist(args):
    result = run("report", *args)
    assert result.exit_code == 2 and result.stdout == "" and "Error:" in result.stderr


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "report.png"
    path.write_text("the old one")
    with pytest.raises(OSError), whole_file(path) as part:
        part.write_text("half of the new")
        raise OSError("No space left on device")
    assert path.read_text() == "the old one" and [p.name for p in tmp_path.iterdir()] == ["report.png"]


@contextmanager
def largest_file(n):
    "No file may grow beyond n bytes, as where the disk is full."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_names_the_file_and_what_to_do(tmp_path, monkeypatch):
    import torch

    from xraycap import reports
    table = tmp_path / "studies.csv"
    table.write_text("the old one")
    few = reports.bundled_records()[:40]
    monkeypatch.setattr(reports, "bundled_records", lambda: few)
    with largest_file(1000): said = one_sentence(run("studies", "--out", table))
    assert said.startswith(f"xraycap: {table}: File too large; make room there or choose another place")
    assert "XRAYCAP_HOME" in said and "run the same command again" in said
    assert table.read_text() == "the old one" and [p.name for p in tmp_path.iterdir()] == ["studies.csv"]
    from xraycap.attention import AttentionDecoder
    from xraycap.models import save_model
    from xraycap.text import Vocab
    vocab = Vocab(["lung"])
    decoder, about = AttentionDecoder(len(vocab), hidden=16, embedding_size=8), dict(encoder="chest", images="phantom")
    with largest_file(10_000), pytest.raises(OSError, match=f"make room there.*{tmp_path / 'model'}"):
        save_model(tmp_path / "model", decoder, vocab, about)
    with largest_file(10_000), pytest.raises(OSError, match="No space left on device; make room there.*best"):
        with room_for(tmp_path / "best.pth"): torch.save(torch.zeros(100_000), tmp_path / "best.pth")
    (tmp_path / "best.pth").unlink()
    assert [p.name for p in tmp_path.iterdir()] == ["studies.csv"]


def test_halves_that_killed_processes_left_are_swept_up(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f".{ended.pid}-r.png", f".{ended.pid}-other.png", f".{os.getppid()}-r.png", ".notes-r.png"):
        (tmp_path / name).touch()
    with whole_file(tmp_path / "r.png") as part: part.write_text("whole")
    left = {f".{ended.pid}-other.png", f".{os.getppid()}-r.png", ".notes-r.png", "r.png"}
    assert {p.name for p in tmp_path.iterdir()} == left


def test_a_link_to_itself(tmp_path):
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    assert "loop.csv: Too many levels" in one_sentence(run("studies", "--out", tmp_path / "loop.csv"))
    assert (tmp_path / "loop.csv").is_symlink()


def test_a_home_of_nobody(monkeypatch):
    monkeypatch.setenv("XRAYCAP_HOME", "~nobodyhere/x")
    assert "XRAYCAP_HOME=~nobodyhere/x is no folder" in one_sentence(run("download", "reports"))


def test_names_that_are_empty(tmp_path):
    for command in ("features", "evaluate", "train"):
        out = ["--out", tmp_path / "model"] if command == "train" else []
        assert "name of the images is empty" in one_sentence(run(command, "--images", "", *out))
    png(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("frontal,findings\na.png,Clear.\n")
    said = one_sentence(run("features", "--images", tmp_path / "t.csv", "--encoder", ""))
    assert "The weights' name is empty" in said
    os.mkfifo(tmp_path / "pipe")
    assert "not a weights file" in one_sentence(run("features", "--images", tmp_path / "t.csv", "--encoder",
                                                    tmp_path / "pipe"))


@pytest.mark.parametrize("option,value", [
    ("--seed", "-1"), ("--seed", "99999999999999999999"), ("--seed", "4294967296"), ("--epochs", "0"),
    ("--epochs", "-1"), ("--epochs", "99999999999999999999")])
def test_limits_are_known_before_any_work(tmp_path, option, value):
    result = run("train", option, value, "--out", tmp_path / "model")
    assert result.exit_code == 2 and result.stdout == "" and option in result.stderr
    from xraycap.training import train_captioner
    with pytest.raises(ValueError, match=f"{option[2:]} is {value}; it must be from"):
        train_captioner(tmp_path / "model", **{option[2:]: int(value)})
    assert list(tmp_path.iterdir()) == []


def interrupt(*args, **kwargs): raise KeyboardInterrupt


@pytest.mark.parametrize("where,args", [
    ("captioner.Captioner.load", ["report"]), ("training.train_captioner", ["train", "--out", "m"]),
    ("results.evaluate", ["evaluate"]), ("studies.load_studies", ["features"]), ("results.score_card", ["score"]),
    ("studies.studies_table", ["studies"]), ("downloads.download", ["download", "reports"])])
def test_ctrl_c_ends_every_command_in_one_line(tmp_path, monkeypatch, where, args):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"xraycap.{where}", interrupt)
    (tmp_path / "t.txt").write_text("clear .\n")
    result = run(*args, *(["t.txt", "t.txt"] if args == ["score"] else []))
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "xraycap: stopped. What is whole is kept; the same command goes on from there.\n"
    assert [p.name for p in tmp_path.iterdir()] == ["t.txt"]


def test_ctrl_c_as_a_program(tmp_path):
    "The program waits for somebody who writes into a pipe."
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "xraycap.cli", "score", tmp_path / "pipe", tmp_path / "pipe"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's jobs in the background are deaf to it
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **pipes, preexec_fn=heard) as process:
        with open(tmp_path / "pipe", "w"):  # it has opened the pipe, and reads
            process.send_signal(signal.SIGINT)
            try: out, err = process.communicate(timeout=60)
            finally: process.kill()
    assert (process.returncode, out, err.count("\n")) == (130, "", 1) and err.startswith("xraycap: stopped")


def test_nobody_takes_what_is_printed():
    for place, code, says in (("/dev/full", 2, "xraycap: standard output: No space left on device.\n"), (None, 1, "")):
        read, write = (None, os.open(place, os.O_WRONLY)) if place else os.pipe()
        if read: os.close(read)
        done = subprocess.run([sys.executable, "-m", "xraycap.cli", "--version"], stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        assert (done.returncode, done.stderr.decode()) == (code, says)


def test_json_is_one_object_also_when_a_library_talks(tmp_path, monkeypatch):
    from xraycap import results
    def talkative(*args):
        print("a progress bar")
        warnings.warn("something is old")
        return {"bleu_4": .5}
    monkeypatch.setattr(results, "score_card", talkative)
    (tmp_path / "t.txt").write_text("clear .\n")
    result = run("score", tmp_path / "t.txt", tmp_path / "t.txt", "--json")
    assert json.loads(result.stdout) == {"bleu_4": .5} and result.stdout.count("\n") == 1
    assert result.stderr == "a progress bar\n"


def test_a_model_that_says_nothing(tmp_path, monkeypatch):
    from xraycap.captioner import Report
    monkeypatch.setattr(Report, "sentences", [])
    result = run("report", "--out", tmp_path)
    assert result.exit_code == 0 and result.stdout.startswith("The model says nothing about this study.")


def test_a_model_that_does_not_exist(tmp_path):
    message = one_sentence(run("report", "--model", "nobody", "--out", tmp_path))
    assert "nobody" in message and "attention" in message
    one_sentence(run("evaluate", "--model", tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_damaged(tmp_path):
    for name in "config.json", "vocab.json", "model.safetensors": (tmp_path / name).write_text("{")
    assert "damaged" in one_sentence(run("report", "--model", tmp_path, "--out", tmp_path / "out"))


def test_a_folder_that_cannot_be_written(tmp_path):
    file = text_file(tmp_path / "file")
    assert "file" in one_sentence(run("report", "--out", file))
    assert "inside" in one_sentence(run("report", "--out", file / "inside"))
    assert "is a folder" in one_sentence(run("studies", "--out", folder(tmp_path / "there")))
    assert "something other than a model" in one_sentence(run("train", "--out", tmp_path))


def test_a_device_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for args in ["report", "--out", tmp_path], ["evaluate"], ["train", "--out", tmp_path / "m"], ["features"]:
        result = run(*args, "--device", "cuda")
        assert result.exit_code == 2 and "no device 'cuda'" in result.stderr and result.stdout == ""
    assert "drop --device" in run("features", "--engine", "ray", "--device", "cpu").stderr
    assert list(tmp_path.iterdir()) == []


def test_where_the_picture_goes(tmp_path):
    assert run("report", "--out", tmp_path / "new" / "mine.png").exit_code == 0
    with Image.open(tmp_path / "new" / "mine.png") as picture: assert picture.width > 500
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["mine.png"]
    (tmp_path / "link.png").symlink_to(tmp_path / "new" / "mine.png")
    (tmp_path / "new" / "mine.png").write_bytes(b"")
    assert run("report", "--out", tmp_path / "link.png").exit_code == 0
    assert (tmp_path / "link.png").is_symlink() and (tmp_path / "new" / "mine.png").stat().st_size > 1000


def test_what_is_no_file_is_written_into(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as other:
        heard = other.submit((tmp_path / "pipe").read_text)
        with whole_file(tmp_path / "pipe") as part: part.write_text("words")
        assert heard.result(10) == "words" and (tmp_path / "pipe").is_fifo()
    hear, say = os.pipe()
    (tmp_path / "out").symlink_to(f"/proc/self/fd/{say}" if sys.platform == "linux" else f"/dev/fd/{say}")
    with whole_file(tmp_path / "out") as part: part.write_text("words")
    assert os.read(hear, 9) == b"words"
    for end in (hear, say): os.close(end)


def test_the_version(): assert run("--version").stdout == f"xraycap {xraycap.__version__}\n"


def test_a_radiograph_is_not_replaced_by_the_report(tmp_path):
    before = png(tmp_path / "report.png").read_bytes()
    assert "would replace" in one_sentence(run("report", tmp_path / "report.png", "--out", tmp_path))
    assert (tmp_path / "report.png").read_bytes() == before


def test_what_the_system_says(tmp_path):
    folder(tmp_path / "report.png")
    assert one_sentence(run("report", "--out", tmp_path)) == f"xraycap: {tmp_path / 'report.png'}: Is a directory.\n"


def test_names_that_do_not_exist(tmp_path):
    assert "diffusion" in one_sentence(run("train", "--decoder", "diffusion", "--out", tmp_path / "model"))
    assert "nowhere" in one_sentence(run("evaluate", "--images", "nowhere"))
    assert "nowhere" in one_sentence(run("evaluate", "--split", "nowhere"))
    assert "nowhere" in one_sentence(run("evaluate", "--part", "nowhere"))
    assert run("download", "everything").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_the_example(tmp_path):
    result = run("report", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    for words in "The radiologist wrote", "simulated", "Not for diagnosis": assert words in result.stdout
    with Image.open(tmp_path / "report.png") as picture: assert picture.format == "PNG"
    assert [p.name for p in tmp_path.iterdir()] == ["report.png"]


def test_json_is_one_object(tmp_path):
    result = program("report", png(tmp_path / "a.png"), png(tmp_path / "b.png"), "--json", "--beam", 2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    keys = {"findings", "sentences", "log_probability", "model", "images", "seconds", "notice", "warnings"}
    assert keys <= report.keys()
    assert report["findings"] == " ".join(report["sentences"])
    assert report["log_probability"] < 0 and report["model"] == "attention" and report["images"] == "phantom"
    assert "Not for diagnosis" in report["notice"] and "simulated" in report["notice"]
    assert (tmp_path / "report.png").is_file()


def test_a_drawn_report_says_so(tmp_path):
    given = "report", png(tmp_path / "a.png"), "--out", tmp_path
    drawn = run(*given, "--sample", 1, "--seed", 5)
    assert "Drawn at temperature 1 with seed 5: one of many reports" in drawn.stdout
    first, again, other, searched = (json.loads(run(*given, "--json", *more).stdout) for more in (
        ("--sample", 1, "--seed", 5), ("--sample", 1, "--seed", 5), ("--sample", 1, "--seed", 6), ()))
    assert first["sampled"] == {"temperature": 1, "seed": 5} and first["sentences"][0] in drawn.stdout
    assert first["findings"] == again["findings"] != other["findings"]
    assert "sampled" not in searched and searched["findings"] != first["findings"]
    assert run(*given, "--sample", 0).exit_code == 2


def test_a_language_model_that_cannot_be_had(tmp_path, monkeypatch):
    given = "train", "--lm", tmp_path / "gpt2", "--out", tmp_path / "mine"
    monkeypatch.setitem(sys.modules, "peft", None)  # as where it is not installed
    assert "pip install 'xraycap[lm]'" in one_sentence(run(*given))
    monkeypatch.undo()
    pytest.importorskip("peft")
    assert "cannot be had: give a folder with config.json" in one_sentence(run(*given))
    assert not (tmp_path / "mine").exists()


def test_swapped_views_are_said_first(tmp_path):
    from xraycap.captioner import example_study
    example = example_study()
    given = "report", example["lateral"], example["frontal"], "--out", tmp_path
    swapped = "The two views seem to be swapped: give the frontal one first."
    plain, as_json = run(*given), run(*given, "--json")
    assert plain.stdout.startswith(f"{swapped}\n\n") and len(plain.stdout.split("\n\n", 1)[1]) > 50
    assert json.loads(as_json.stdout)["warnings"] == [swapped] and "\n" not in as_json.stdout.strip()


def test_what_was_odd_on_opening_is_said_first(tmp_path):
    view = np.random.default_rng(0).integers(0, 4096, (224, 224), np.uint16)
    file = write_dicom(tmp_path / "a.dcm", view, WindowCenter=30_000, WindowWidth=100)
    plain, as_json = (run("report", file, "--out", tmp_path, *more) for more in ([], ["--json"]))
    assert plain.exit_code == as_json.exit_code == 0
    said = f"{file}: The display window in the file leaves 1 of 256 greys, so the picture's own range is shown."
    strange = "The first picture does not look like a chest radiograph."  # it is noise
    assert plain.stdout.startswith(f"{said}\n{strange}\n\n") and len(plain.stdout.split("\n\n", 1)[1]) > 50
    assert json.loads(as_json.stdout)["warnings"] == [said, strange] and "\n" not in as_json.stdout.strip()


def test_training_and_scoring_say_what_was_learnt_from(tmp_path, monkeypatch):
    asked, about = {}, {"images": "phantom", "encoder": "chest", "radiographs": {"table": "nih", "n": 1034}}
    def train_captioner(out, **settings):
        asked.update(settings)
        return pd.DataFrame({"valid_loss": [.3, .2], "perplexity": [1.3, 1.2]})
    monkeypatch.setattr("xraycap.training.train_captioner", train_captioner)
    monkeypatch.setattr("xraycap.models.load_model", lambda model: (None, None, about))
    monkeypatch.setattr("xraycap.results.evaluate", lambda *args, **settings: {"bleu_1": .5, "images": "phantom"})
    said = run("train", "--radiographs", "nih.csv", "--out", tmp_path / "both").stdout
    assert str(asked["radiographs"]) == "nih.csv" and asked["images"] == "phantom"
    assert "epoch 2 of 2 on simulated images and 1,034 labelled radiographs of nih, validation perplexity" in said
    said = run("evaluate", "--model", tmp_path / "both").stdout
    assert said.endswith("The model learnt from simulated images and 1,034 labelled radiographs of nih.\n")


def test_the_case_studys_recipe_can_be_named(tmp_path, monkeypatch):
    asked = []
    def train_captioner(out, **settings):
        asked.append(settings)
        return pd.DataFrame({"valid_loss": [.2, .3], "perplexity": [1.2, 1.3]})
    about = {"images": "phantom", "encoder": "chest"}
    monkeypatch.setattr("xraycap.training.train_captioner", train_captioner)
    monkeypatch.setattr("xraycap.models.load_model", lambda model: (None, None, about))
    out = ["--out", tmp_path / "rerun"]
    said = run("train", "--recipe", "case-study", *out).stdout
    run("train", "--recipe", "case-study", "--decoder", "lstm", "--epochs", 3, "--split", "chen", *out)
    run("train", "--targets", "own", *out)
    facts = [[settings.get(name) for name in ("decoder", "epochs", "split", "targets")] for settings in asked]
    assert facts[:2] == [["attention", 50, "case-study", "own"], ["lstm", 3, "chen", "own"]]
    assert facts[2] == ["attention", None, None, "own"]
    assert "epoch 2 of 2" in said and said.count("1.30") == 1 and "--split case-study" in said  # the last is kept
    assert "no decoder 'transformer'" in one_sentence(
        run("train", "--recipe", "case-study", "--decoder", "transformer", *out))


def test_help_is_quick():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = program("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0 and "report" in result.stdout
    work = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # whatever else the machine does
    assert work < 1  # second
    code = "import sys, xraycap.cli; print('torch' in sys.modules, 'pandas' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout.split() == ["False", "False"]


def test_score(tmp_path):
    refs, hyps = tmp_path / "refs.txt", tmp_path / "hyps.txt"
    refs.write_text("the heart is normal in size .\nthe lungs are clear . no effusion .\n")
    hyps.write_text("the heart is large .\nthe lungs are clear . no effusion .\n")
    from xraycap.results import score_card
    card = json.loads(run("score", refs, hyps, "--json").stdout)
    assert card == score_card(refs.read_text().splitlines(), hyps.read_text().splitlines())
    assert "bleu_4" in run("score", refs, hyps).stdout
    said = hyps.read_text().replace("are clear", "are\x0c\x85 clear")  # no ends of a line
    for data in said.encode("utf-8-sig"), said.replace("\n", "\r\n").encode(), said.strip().encode():
        hyps.write_bytes(data)
        assert json.loads(run("score", refs, hyps, "--json").stdout) == card
    hyps.write_text("one line\n")
    assert "2 references and 1 hypotheses" in one_sentence(run("score", refs, hyps))
    hyps.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in one_sentence(run("score", refs, hyps))
    hyps.write_text("")
    assert "0 references" in one_sentence(run("score", hyps, hyps))
    assert "no file" in one_sentence(run("score", refs, tmp_path / "missing.txt"))


def test_studies(tmp_path):
    out = tmp_path / "new" / "studies.csv"
    assert run("studies", "--out", out).exit_code == 0
    with out.open(newline="", encoding="utf-8") as f: rows = list(csv.DictReader(f))
    assert len(rows) == 3955 and len({r["uid"] for r in rows}) == 3955
    columns = "uid images views frontal lateral findings impression findings_clean mesh split"
    assert set(columns.split()) <= rows[0].keys()
    for row in rows:
        images, views = row["images"].split(";"), row["views"].split(";")
        assert len(images) == len(views) and set(views) <= {"frontal", "lateral", ""}
        assert not row["images"] or {row["frontal"], row["lateral"]} <= set(images)
    assert run("studies", "--out", tmp_path / "small.csv.gz").exit_code == 0
    with gzip.open(tmp_path / "small.csv.gz", "rb") as packed: assert packed.read() == out.read_bytes()
    parts = [r["split"] for r in rows]
    assert [parts.count(p) for p in ("train", "val", "test")] == [2069, 296, 590]
    assert [p.name for p in out.parent.iterdir()] == ["studies.csv"]

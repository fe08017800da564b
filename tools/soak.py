"""Kill what writes, and look at what is left: `make soak` (KILLS=5 for fewer; JOBS="train report" for some commands).

Each command runs on a small input of its own. It is killed (-9) at a random moment, 10 times; after each kill whatever
has its final name must be whole, and the next run must end with what an undisturbed run gives, and leave nothing of the
dead one behind. Then it runs with a limit on the size of files, as on a full disk: it must say in one sentence which
file and what to do, and do it right the next time. Then two run at once in one folder. Ends with 1 if anything is
wrong. A run is a fork of this process, which has imported everything: so kills fall into the work, not into the
imports, and all of it takes a few minutes. Ray, whose processes start anew, is killed a fifth as often. Linux only."""
import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from xraycap.cli import main as xraycap_command
from xraycap.features import ROW_BYTES, FeatureStore
from xraycap.models import load_model

for module in ("captioner", "training"): import_module(f"xraycap.{module}")  # here once, so that no run has to

STUDIES, LIMIT = 8, 50_000  # studies of a table; bytes of a file, where files are limited
fork = multiprocessing.get_context("fork")
SENTENCES = ["the heart is enlarged .", "the lungs are clear .", "there is a left pleural effusion .",
             "no pneumothorax is seen ."]


def a_png(seed, side=64):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)).save(file, format="PNG")
    return file.getvalue()


def make_table(folder):
    "A table of studies with reports; returns its path."
    folder.mkdir()
    lines = ["frontal,findings,split"]
    for i in range(STUDIES):
        (folder / f"{i}.png").write_bytes(a_png(i))
        split = "val" if i % 8 == 0 else "test" if i % 8 == 1 else "train"
        lines.append(f"{i}.png,{' '.join(SENTENCES[j] for j in (i % 4, (i + 1) % 4))},{split}")
    (folder / "data.csv").write_text("\n".join(lines) + "\n")
    return folder / "data.csv"


def serve_images():
    "An archive as the collection's, on this machine; returns its address."
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for i in range(200):
            member = tarfile.TarInfo(f"CXR{i}_IM-0001-1001.png")
            member.size = len(data := a_png(i, 128))
            tar.addfile(member, io.BytesIO(data))
    data = file.getvalue()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args): pass

        def do_GET(self):
            begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            self.send_response(206 if begin else 200)
            if begin: self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - begin))
            self.end_headers()
            for i in range(begin, len(data), 2**16):
                try: self.wfile.write(data[i:i + 2**16])
                except OSError: return  # killed
                time.sleep(.01)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fork.Process(target=httpd.serve_forever, daemon=True).start()  # in a thread, its locks would be forked
    return f"http://127.0.0.1:{httpd.server_port}/images.tgz"


# What has its final name in a folder, as a dict to compare; whatever is there must be whole, or these raise.

def picture(folder):
    return {p.name: np.asarray(Image.open(p)).tobytes() for p in folder.glob("[!.]*.png")}  # a part begins with a dot


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("*.csv")}


def images(folder):
    found = {p.name: p.read_bytes() for p in folder.glob("openi/*")}
    if found and len(found) != 200: raise ValueError(f"{len(found)} of 200 images")
    return found


def features(folder):
    rows = {}
    for index in folder.glob("features/*.json"):
        named = json.loads(index.read_text())["rows"]
        if named and index.with_suffix(".f16").stat().st_size < (1 + max(named.values())) * ROW_BYTES:
            raise ValueError("the index names rows that are not there")
        store = FeatureStore(index.with_suffix(".f16"))
        rows |= {uid: store[uid].tobytes() for uid in map(int, named)}
    return rows


def model(folder):
    if not (folder / "model").exists(): return {}
    load_model(folder / "model")
    return {name: (folder / "model" / name).read_bytes() for name in ("model.safetensors", "vocab.json")}


def jobs(table):
    "name -> (arguments for a folder, what is there)"
    encode = ["features", "--images", table, "--encoder", "chest"]
    found = {
        "report": (lambda folder: ["report", "--out", folder / "r.png"], picture),
        "studies": (lambda folder: ["studies", "--out", folder / "s.csv"], files_of),
        "download": (lambda folder: ["download", "images", "--to", folder], images),
        "features": (lambda folder: encode, features),
        "train": (lambda folder: ["train", "--images", table, "--encoder", "chest", "--epochs", "1",
                                  "--out", folder / "model"], model)}
    if find_spec("ray"): found["features ray"] = (lambda folder: [*encode, "--engine", "ray"], features)
    return found


def run(args, folder, url, limit):
    "In the child: the command, with what it says in a file."
    os.setpgid(0, 0)
    said = os.open(folder / "tmp" / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ |= {"XRAYCAP_HOME": str(folder), "XRAYCAP_URL_IMAGES": url, "TMPDIR": str(folder / "tmp")}
    if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["xraycap", *map(str, args)]
    xraycap_command()


def start(args, folder, url, limit=None):
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    (folder / "tmp" / "said").unlink(missing_ok=True)
    program = fork.Process(target=run, args=(args, folder, url, limit))
    program.start()
    return program


def end(program, folder):
    "Wait for its end: its exit code, and what it said."
    program.join()
    return program.exitcode, (folder / "tmp" / "said").read_text() if (folder / "tmp" / "said").exists() else ""


def left_over(folder):
    "Halves, in a folder where nothing runs any more."
    inside = [p.relative_to(folder) for p in folder.rglob("*")]
    return [str(p) for p in inside if p.parts[0] != "tmp" and (p.suffix == ".part" or p.name.startswith("."))]


class Job:
    def __init__(self, name, args, there, folder, url):
        self.name, self.args, self.there, self.folder, self.url, self.wrong = name, args, there, folder, url, []
        began = time.monotonic()
        self.right = self.ends(folder / "right")
        self.seconds = time.monotonic() - began
        if not self.right: raise SystemExit(f"{name} does not even work undisturbed: {self.wrong}")

    def ends(self, folder):
        "Run to the end; what is there then."
        code, said = end(start(self.args(folder), folder, self.url), folder)
        if code: self.wrong.append(f"{self.name} ended with {code}: {said[-300:]}")
        return self.look(folder)

    def look(self, folder):
        try: return self.there(folder)
        except Exception as e:  # whatever it is, it is what we are looking for
            self.wrong.append(f"{self.name}: {type(e).__name__}: {e}")
            return {}

    def ends_right(self, folder):
        if self.ends(folder) != self.right: self.wrong.append(f"{self.name}: another result in {folder}")
        if halves := left_over(folder): self.wrong.append(f"{self.name} left {halves}")
        shutil.rmtree(folder)

    def kill(self, i):
        "Was it still running when it was killed?"
        folder = self.folder / f"kill{i}"
        program = start(self.args(folder), folder, self.url)
        time.sleep(random.uniform(.05, 1) * self.seconds)
        running = program.is_alive()
        if running: os.killpg(program.pid, signal.SIGKILL)
        program.join()
        now = self.look(folder)
        if any(self.right.get(name) != data for name, data in now.items()):
            self.wrong.append(f"{self.name}: something half under its final name in {folder}")
        self.ends_right(folder)
        return running

    def full_disk(self):
        "The sentence that it ends with."
        folder = self.folder / "full"
        code, said = end(start(self.args(folder), folder, self.url, limit=LIMIT), folder)
        last = said.strip().splitlines()[-1] if said.strip() else ""
        if code != 2 or not last.startswith("xraycap:") or "make room" not in last:
            self.wrong.append(f"{self.name} on a full disk ended with {code}: {said[-300:]}")
        if any(self.right.get(name) != data for name, data in self.look(folder).items()):
            self.wrong.append(f"{self.name}: a full disk left something half in {folder}")
        self.ends_right(folder)

    def two_at_once(self):
        folder = self.folder / "two"
        programs = [start(self.args(folder), folder, self.url) for _ in range(2)]
        for program in programs:
            code, said = end(program, folder)
            if code: self.wrong.append(f"{self.name}, one of two: {code}: {said[-300:]}")
        if self.look(folder) != self.right: self.wrong.append(f"{self.name}: two at once gave another result")
        if halves := left_over(folder): self.wrong.append(f"{self.name}: two at once left {halves}")
        shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", nargs="*", help="some of: report, studies, download, features, train, features ray")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    wrong = []
    print(f"{'command':14}{'killed':>8}{'running':>9}{'full disk':>11}{'two at once':>13}{'wrong':>7}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as tmp:
        table, url = make_table(Path(tmp) / "table"), serve_images()
        for i, (name, (command, there)) in enumerate(jobs(table).items()):
            if args.jobs and name not in args.jobs: continue
            began = time.monotonic()
            job = Job(name, command, there, Path(tmp) / str(i), url)  # short: Ray's sockets lie in it
            ray = name == "features ray"  # its own processes write, too, and wait for nobody
            kills = max(args.kills // 5, 1) if ray else args.kills
            hit = sum(job.kill(kill) for kill in range(kills))
            if not ray: job.full_disk()
            job.two_at_once()
            print(f"{name:14}{kills:8}{hit:9}{'-' if ray else 'tried':>11}{'tried':>13}{len(job.wrong):7}"
                  f"{time.monotonic() - began:9.0f}", flush=True)
            wrong += job.wrong
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__": main()

"""xraycap serve under load, on loopback: `python bench/load.py` (100 requests, 8 at a time; Linux, for the memory).

A request is the two views of the example study, as PNG. In five rounds, 8 requests one at a time and 20 requests 8 at a
time, where a client sends its next request when it has its answer; in turns, because a machine's speed changes with
what else it does. With 8 in the house and one model, a request waits for the 7 before it, so its whole time is about 8
times that of a report (Little's law). What load must not do is make the reports themselves dearer; so what is compared
with a single request is the time that a report takes from when its turn comes (`seconds` of the answer), and the time
of the whole run divided by its requests. Ends with 1 when a request fails, memory grows by more than 5 %, or either is
more than 1.5 times the time of a single request."""
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import requests

from xraycap.captioner import example_study

REQUESTS, AT_ONCE, ROUNDS = 100, 8, 5
study = example_study()
files = {view: study[view].read_bytes() for view in ("frontal", "lateral")}


def ask(url):
    began = time.perf_counter()
    images = {view: (f"{view}.png", data) for view, data in files.items()}
    answer = requests.post(f"{url}/api/report", files=images, timeout=120)
    report = answer.json()
    return answer.status_code, time.perf_counter() - began, report.get("seconds", 0), report.get("findings")


def memory(pid):
    "Resident MiB of a process."
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def run(url, requests, at_once):
    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool: answers = list(pool.map(ask, [url] * requests))
    return answers, (time.perf_counter() - began) / requests


command = [sys.executable, "-m", "xraycap.cli", "serve", "--port", "0"]
server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
try:
    url = server.stdout.readline().strip()
    run(url, 2 * AT_ONCE, AT_ONCE)  # libraries take their buffers at the first reports
    alone, answers, times, before = [], [], [], memory(server.pid)
    for _ in range(ROUNDS):
        alone += run(url, AT_ONCE, 1)[0]
        some, each = run(url, REQUESTS // ROUNDS, AT_ONCE)
        answers += some
        times.append(each)
    after = memory(server.pid)
finally:
    server.terminate()
    server.wait()

single = median(t for _, t, _, _ in alone)
whole, turn = median(t for _, t, _, _ in answers), median(s for _, _, s, _ in answers)
each = sum(times) / ROUNDS
failed, texts, growth = sum(a[0] != 200 for a in answers), {a[3] for a in answers + alone}, after / before - 1
print(f"alone          median {single:.3f} s a request, of which the report took {median(a[2] for a in alone):.3f} s")
print(f"{AT_ONCE} at a time    {REQUESTS} requests, {failed} failed, {len(texts)} different answers; "
      f"median {whole:.3f} s with waiting ({whole / single:.1f} times alone)")
print(f"               the report, once its turn has come: median {turn:.3f} s ({turn / single:.2f} times alone)")
print(f"               run divided by requests: {each:.3f} s ({each / single:.2f} times alone)")
print(f"memory         {before:.0f} MB before, {after:.0f} MB after ({growth:+.1%})")
sys.exit(bool(failed or len(texts) > 1 or growth > .05 or max(turn, each) > 1.5 * single))

"""xraycap serve under load, on loopback: `python bench/load.py` (300 requests, 8 at a time; Linux, for the memory).

Every third request is the two views of the example study, as PNG; between them come the page, an example, a letter in
place of a radiograph and what else a server is asked. In five rounds, 8 studies one at a time and 60 requests 8 at a
time, where a client sends its next request when it has its answer; in turns, because a machine's speed changes with
what else it does. With 8 in the house and one model, a request waits for the 7 before it, so its whole time is about 8
times that of a report (Little's law). What load must not do is make the reports themselves dearer; so what is compared
with a single request is the time that a report takes from when its turn comes (`seconds` of the answer), and the time
of the whole run divided by its studies. Memory is read after each round: what the first two still take are buffers that
libraries keep, what the last three add would be a leak. Ends with 1 when a request fails, memory grows by more than 5 %
in the last three rounds, or either time is more than 1.5 times that of a single request."""
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import requests

from xraycap.captioner import example_study

REQUESTS, AT_ONCE, ROUNDS = 300, 8, 5
study = example_study()
files = {view: study[view].read_bytes() for view in ("frontal", "lateral")}
send = {view: (f"{view}.png", data) for view, data in files.items()}
letter, cut = ("letter.png", b"Dear colleague"), ("cut.png", files["frontal"][:2000])
STUDY = ("POST", "/api/report", send, 200)
OTHERS = [("GET", "/", None, 200), ("GET", "/static/app.js", None, 200), ("GET", "/healthz", None, 200),
          ("GET", "/api/examples/379", None, 200), ("GET", "/api/examples/379/frontal.png", None, 200),
          ("GET", "/nowhere", None, 404), ("POST", "/api/report", {"frontal": letter}, 422),
          ("POST", "/api/report", {"frontal": cut}, 422), ("POST", "/api/report", {"lateral": letter}, 400),
          ("POST", "/api/report", {"frontal": ("large.png", b"\x89PNG\r\n\x1a\n" + bytes(21 * 2**20))}, 413)]
MIXED = [STUDY if i % 3 == 0 else OTHERS[i % len(OTHERS)] for i in range(REQUESTS // ROUNDS)]


def ask(url, request):
    "Was it answered as it should be; seconds with waiting and without; and the findings."
    began, (method, path, files, code) = time.perf_counter(), request
    answer = requests.request(method, url + path, files=files, timeout=120)
    report = answer.json() if request is STUDY else {}
    return answer.status_code == code, time.perf_counter() - began, report.get("seconds", 0), report.get("findings")


def memory(pid):
    "Resident MiB of a process."
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def run(url, requests, at_once):
    "-> (answers, seconds for each study)"
    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool: answers = list(pool.map(lambda request: ask(url, request), requests))
    return answers, (time.perf_counter() - began) / requests.count(STUDY)


command = [sys.executable, "-m", "xraycap.cli", "serve", "--port", "0"]
server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
try:
    url = server.stdout.readline().strip()
    run(url, MIXED + OTHERS[-1:] * 40, AT_ONCE)  # libraries take their buffers at the first requests
    alone, answers, times, sizes = [], [], [], [memory(server.pid)]
    for _ in range(ROUNDS):
        alone += run(url, [STUDY] * AT_ONCE, 1)[0]
        some, each = run(url, MIXED, AT_ONCE)
        answers += some
        times.append(each)
        sizes.append(memory(server.pid))
finally:
    server.terminate()
    server.wait()

reports = [a for a in answers if a[3]]
single = median(t for _, t, _, _ in alone)
whole, turn = median(t for _, t, _, _ in reports), median(s for _, _, s, _ in reports)
each = sum(times) / ROUNDS
failed, texts, growth = sum(not a[0] for a in answers), {a[3] for a in reports + alone}, sizes[-1] / sizes[2] - 1
print(f"alone          median {single:.3f} s a study, of which the report took {median(a[2] for a in alone):.3f} s")
print(f"{AT_ONCE} at a time    {len(answers)} requests, {failed} answered wrongly; {len(reports)} of them studies, "
      f"{len(texts)} different reports; median {whole:.3f} s with waiting ({whole / single:.1f} times alone)")
print(f"               the report, once its turn has come: median {turn:.3f} s ({turn / single:.2f} times alone)")
print(f"               run divided by studies: {each:.3f} s ({each / single:.2f} times alone)")
rounds = ", ".join(f"{size:.0f}" for size in sizes)
print(f"memory         {rounds} MB before and after each round ({growth:+.1%} since the second)")
sys.exit(bool(failed or len(texts) > 1 or growth > .05 or max(turn, each) > 1.5 * single))

"""`make test`: the linter, modules in step with the notebooks, then every notebook, then tests/.

The first step that fails ends it. The last line says how many passed and where the time went. What is said on the
command line goes to pytest: `tools/run_tests.py -k beam`."""
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[1]


def clock(seconds): return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def run(*command):
    "Shows what the command says while it says it; all of that."
    lines = []
    with subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        for line in program.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if program.returncode: sys.exit(f"{Path(command[-1] if command[0] == sys.executable else command[0]).name} failed.")
    return "".join(lines)


def notebook_times(said):
    "{notebook: seconds}, from what `nbdev_test --timing` says in the end."
    return {name: int(seconds) for name, seconds in re.findall(r"^(\S+)\.ipynb: (\d+) secs$", said, re.M)}


def test_times(report):
    "(tests passed, tests skipped, {file: seconds}), from pytest's JUnit report."
    times, passed, skipped = {}, 0, 0
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.get("classname").split(".")[1]
        times[file] = times.get(file, 0) + float(case.get("time"))
        if case.find("skipped") is None: passed += 1
        else: skipped += 1
    return passed, skipped, times


def last_line(began, checked, ran, ended, notebooks, passed, skipped, tests):
    "How many passed, and where the time went: the four times are those at which a part began or ended."
    slowest = sorted((notebooks | tests).items(), key=lambda o: -o[1])[:5]
    return (f"Passed in {clock(ended - began)}: {len(notebooks)} notebooks, {passed} tests ({skipped} skipped). "
            f"Checks {clock(checked - began)}, notebooks {clock(ran - checked)}, tests {clock(ended - ran)}; slowest: "
            + ", ".join(f"{name} {clock(seconds)}" for name, seconds in slowest) + ".")


def main():
    began = time.monotonic()
    run(sys.executable, "tools/lint.py")
    run("tools/chromium.sh")
    run("tools/in_sync.sh")
    checked = time.monotonic()
    notebooks = notebook_times(run(BIN / "nbdev_test", "--n_workers", "2", "--do_print", "--timing"))
    ran = time.monotonic()
    with tempfile.TemporaryDirectory() as tmp:
        report = Path(tmp) / "tests.xml"
        run(BIN / "pytest", "-q", "-rs", "tests", f"--junitxml={report}", *sys.argv[1:])
        print(last_line(began, checked, ran, time.monotonic(), notebooks, *test_times(report)))


if __name__ == "__main__": main()

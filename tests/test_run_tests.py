"The line that ends `make test`"
import importlib.util
import subprocess
import sys
from pathlib import Path

path = Path(__file__).resolve().parents[1] / "tools" / "run_tests.py"
spec = importlib.util.spec_from_file_location("run_tests", path)
run_tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_tests)


def test_the_last_line(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_1(): pass\ndef test_2(): pass\n")
    (tmp_path / "tests" / "test_b.py").write_text(
        "import time, pytest\ndef test_1(): time.sleep(.2)\n@pytest.mark.skip\ndef test_2(): pass\n")
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", "--junitxml=t.xml"]
    subprocess.run(pytest, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    passed, skipped, tests = run_tests.test_times(tmp_path / "t.xml")
    assert (passed, skipped) == (3, 1) and .2 <= tests["test_b"] and set(tests) == {"test_a", "test_b"}
    notebooks = run_tests.notebook_times("Starting nbs/12_search.ipynb\nSuccess.\n12_search.ipynb: 75 secs\n")
    assert notebooks == {"12_search": 75}
    assert run_tests.last_line(0, 30, 150, 400, notebooks, passed, skipped, {"test_a": 9.4, "test_b": 200.7}) == (
        "Passed in 6:40: 1 notebooks, 3 tests (1 skipped). Checks 0:30, notebooks 2:00, tests 4:10; "
        "slowest: test_b 3:20, 12_search 1:15, test_a 0:09.")

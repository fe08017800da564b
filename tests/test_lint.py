"Each law of tools/lint.py sees its breach in a tiny repository, and lets the right form pass."
import importlib.util
import shutil
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, writes

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("lint", ROOT / "tools" / "lint.py")
lint = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lint)


@pytest.fixture
def breaches(tmp_path):
    "What `law` finds in a repository of these files; a notebook is a list of cells, of which those with a # are code."
    def find(law, **files):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        shutil.copy(ROOT / "pyproject.toml", tmp_path)
        for name, content in {"xraycap/__init__.py": '_module_of = {"find": "search"}\n', **files}.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            if path.suffix == ".ipynb":
                made = [new_code_cell if cell.startswith("#") else new_markdown_cell for cell in content]
                cells = [new(cell.removeprefix("# code\n")) for new, cell in zip(made, content)]
                content = writes(new_notebook(cells=cells))
            path.write_text(content)
        return list(lint.check(tmp_path, [law]))
    return find


def module(name, *cells): return [f"#| default_exp {name}", *cells]


@pytest.mark.parametrize("rule, wrong, right", [
    ("Q000", "x = 'a'", 'x = "a"'),
    ("F401", "import json", "import json\njson.dumps(1)"),
    ("F841", "def f():\n    y = 1", "def f():\n    return 1"),
    ("F811", "def f(): return 1\ndef f(): return 2", "def f(): return 1\nf()\ndef f(): return 2"),
    ("F403", "from math import *\npi", "from math import pi\npi"),
    ("F821", "no_such_name", "print"),
    ("E401", "import json, re\njson, re", "import json\nimport re\njson, re"),
    ("E231", "def f(x:int): return x", "def f(x: int): return x"),
    ("E252", "def f(x: int= 3): return x", "def f(x: int = 3): return x"),
    ("E261", "def f(\n    x, # an image\n): return x", "def f(\n    x,  # an image\n): return x"),
    ("E501", f"# {'word ' * 30}end", f'#| fig-alt: "{"word " * 30}"\n# https://a.org/ {"word " * 30}end\n2*3; f = lambda: 1'),
])
def test_style(breaches, rule, wrong, right):
    assert breaches(lint.style, **{"nbs/00_a.ipynb": ["A", f"# code\n{right}"]}) == []
    in_cell, in_file = breaches(lint.style, **{"nbs/00_a.ipynb": ["A", f"# code\n{wrong}"], "tests/a.py": f"{wrong}\n"})
    assert in_cell.startswith("nbs/00_a.ipynb, cell 2, line ") and f": {rule} " in in_cell
    assert in_file.startswith("tests/a.py, line ") and f": {rule} " in in_file


def test_a_name_is_used_if_any_cell_uses_it(breaches):
    assert breaches(lint.style, **{"nbs/00_a.ipynb": ["# code\nimport json", "# code\njson.dumps(1)"]}) == []


def test_a_module_imports_what_it_uses_and_no_more(breaches):
    found = breaches(lint.style, **{"xraycap/search.py": "__all__ = ['find']\nimport json\ndef find(): return np\n"})
    assert [f.split(" ")[3] for f in found] == ["F401", "F821"]


@pytest.mark.parametrize("signature, silent", [
    ("x,  # an image\n    y=1,  # a size", ""), ("x,  # an image\n    y=1", "y"), ("x, y=1  # both", "x, y")])
def test_docments(breaches, signature, silent):
    text = f"__all__ = ['find', 'Net']\ndef find(\n    {signature}\n): return x\ndef inner(x): return x\n"
    text += f"class Net:\n  def __call__(self, x): return x\n  def look(\n    self,\n    {signature}\n): return x\n"
    found = breaches(lint.docments, **{"xraycap/search.py": text})
    assert [f.split(": ", 1)[1] for f in found] == [
        f"{name}: no line with a comment of its own for {silent}" for name in ("find", "look") if silent]


@pytest.mark.parametrize("code", [
    "from xraycap.search import find, _grow", "from xraycap import search\nsearch._grow",
    "import xraycap.search\nxraycap.search._grow", "import xraycap.search as s\ns._grow"])
def test_private(breaches, code):
    notebooks = {"nbs/00_search.ipynb": module("search", f"# code\n{code}"), "nbs/01_app.ipynb": module("app")}
    own = dict.fromkeys(["tests/test_search.py", "tests/test_search_browser.py"], code)
    assert breaches(lint.private, **notebooks, **own) == []
    files = ["bench/a.py", "tests/test_app.py", "tools/a.py"]
    found = breaches(lint.private, **notebooks, **dict.fromkeys(files, code))
    assert sorted(f.split(",")[0] for f in found) == files
    notebooks["nbs/01_app.ipynb"] += [f"# code\n{line}" for line in code.splitlines()]
    found, = breaches(lint.private, **notebooks)
    assert found.startswith("nbs/01_app.ipynb, cell ") and found.endswith(": _grow is private to xraycap.search")


def test_not_private(breaches):
    code = "from xraycap import search, __version__\nsearch.find, search.__name__, self._grow"
    assert breaches(lint.private, **{"nbs/00_search.ipynb": module("search"), "tools/a.py": code}) == []


EARLY, LATE = "nbs/01_text.ipynb", "nbs/02_search.ipynb"


@pytest.mark.parametrize("code", [
    "from xraycap.search import find", "from xraycap import find", "import xraycap.search",
    "def f():\n    from xraycap import search", "!pip install a\nfrom xraycap import find"])
def test_order(breaches, code):
    for directive in "#| export", "# code", "#| export\n#| fig-alt: a":
        cell = f"{directive}\n{code}"
        found, = breaches(lint.order, **{EARLY: module("text", cell), LATE: module("search")})
        assert f"{EARLY}, cell 2" in found and found.endswith("imports search: 02_search.ipynb is not earlier")
        assert breaches(lint.order, **{"nbs/01_search.ipynb": module("search"), LATE: module("text", cell)}) == []
    picture = f"#| fig-alt: where the way leads\n{code}"
    assert breaches(lint.order, **{EARLY: module("text", picture), LATE: module("search")}) == []
    assert breaches(lint.order, **{"nbs/index.ipynb": [f"# code\n{code}"], LATE: module("search")}) == []


def test_order_through_appendices(breaches):
    a1, a2 = "nbs/a_files.ipynb", "nbs/b_views.ipynb"
    appendices = {a1: module("files", "#| export\nfrom xraycap.body import views"),
                  a2: module("body.views", "#| export\nfrom xraycap.text import clean")}
    use = "# code\nfrom xraycap.files import cache_dir"
    assert breaches(lint.order, **appendices, **{EARLY: module("text"), LATE: module("search", use)}) == []
    for name in EARLY, "nbs/00_reports.ipynb":
        chapters = {EARLY: module("text")} | {name: module("text" if name == EARLY else "reports", use)}
        found, = breaches(lint.order, **appendices, **chapters)
        assert found.endswith("imports files, which needs body.views, which needs text: 01_text.ipynb is not earlier")
    shown = {a1: module("files", use, "# code\nfrom xraycap.text import clean")}  # what is only shown binds no chapter
    assert breaches(lint.order, **shown, **{EARLY: module("text", use)}) == []


def test_no_circle(breaches):
    a1, a2 = "nbs/a_files.ipynb", "nbs/b_views.ipynb"
    found, = breaches(lint.order, **{a1: module("files", "#| export\nfrom xraycap.views import x"),
                                     a2: module("views", "#| export\nfrom xraycap.files import x")})
    assert "imports in a circle" in found


def test_weight(breaches):
    assert breaches(lint.weight, **{"nbs/00_a.ipynb": ["a"] * 80, "nbs/01_b.ipynb": ["x" * 799_000]}) == []
    many, heavy = breaches(lint.weight, **{"nbs/00_a.ipynb": ["a"] * 81, "nbs/01_b.ipynb": ["x" * 800_001]})
    assert "81 cells" in many and many.startswith("nbs/00_a.ipynb") and "more than 800,000" in heavy
    found = breaches(lint.weight, **{f"nbs/{i:02}_a.ipynb": ["x" * 799_000] for i in range(11)})
    assert len(found) == 1 and found[0].startswith("nbs: ")


def an_exercise(k):
    return [f"**Exercise {k}.** Twice.\n\n<details><summary>Hint</summary>\n\nAdd it.\n\n</details>",
            "# code\ndef check(f): assert f(2) == 4",
            "#| notest\ndef double(x): ...  # your turn", "#| notest\ncheck(double)",
            '#| code-fold: true\n#| code-summary: "Solution"\ndef double(x): return x + x\ncheck(double)']


TOP = ["A", "*Reading: 5 minutes. Running: 1 minute on one core. Needs: chapter 2.*",
       "::: {.callout-note}\n## In the case study\nA loop.\n:::"]
RIGHT = [*TOP, *an_exercise(1), *an_exercise(2), *an_exercise(3)]


def test_chapters(breaches):
    right = {"nbs/00_a.ipynb": RIGHT, "nbs/a_b.ipynb": TOP[:2], "nbs/index.ipynb": ["A"]}
    assert breaches(lint.chapters, **right) == []
    assert len(breaches(lint.chapters, **{"nbs/00_a.ipynb": ["A"], "nbs/a_b.ipynb": ["A"]})) == 4
    found = breaches(lint.chapters, **{"nbs/a_b.ipynb": RIGHT[:-5]})
    assert found == ["nbs/a_b.ipynb: exercises [1, 2], not [1, 2, 3]"]


@pytest.mark.parametrize("i, old, new, wrong", [
    (0, "<summary>Hint</summary>", "", "no folded hint"), (3, "#| notest", "# code", "1 cells with '#| notest'"),
    (2, "# your turn", "", "a stub without"), (4, "Solution", "Answer", "no folded solution"),
    (4, "#|", "#| slow\n#|", "test run leaves out"), (4, "check(double)", "", "does not run the test")])
def test_exercises(breaches, i, old, new, wrong):
    cells = RIGHT.copy()
    cells[8 + i] = cells[8 + i].replace(old, new, 1)
    found, = breaches(lint.chapters, **{"nbs/00_a.ipynb": cells})
    assert found.startswith("nbs/00_a.ipynb, cell 9: an exercise with ") and wrong in found


def test_hints_only_on_request(breaches):
    long = "def f():\n" + "    print(1)\n" * 40
    found = breaches(lint.hints, **{"xraycap/search.py": long * 10})
    assert "a module of 410 lines" in found[0] and "f has 41 lines" in found[1] and len(found) == 11
    assert lint.hints not in lint.LAWS

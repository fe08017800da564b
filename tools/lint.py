"""What `make test` checks of the writing itself: style (by ruff, as pyproject.toml says), a comment for each parameter,
no name that is private to another module, imports from earlier chapters only, the notebooks' weight, a chapter's parts.

python tools/lint.py [--hints]   --hints adds long functions and modules: a guide, not a law"""
import ast
import json
import re
import runpy
import subprocess
import sys
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = "xraycap"
HEAVIEST, ALL_TOGETHER, MOST_CELLS = 800_000, 8_000_000, 80  # bytes of a notebook, of all; cells of a notebook
LONG_FUNCTION, LONG_MODULE = 40, 350  # lines


class Cell:
    def __init__(self, number, kind, source):
        self.number, self.kind, self.source = number, kind, source  # the first cell is number 1, as ruff counts

    def has(self, directive): return bool(re.search(rf"^#\| *{directive}", self.source, re.M))

    @cached_property
    def tree(self):
        "The code's syntax tree, with `pass` for lines to the shell and to IPython."
        return ast.parse(re.sub(r"^( *)[!%].*$", r"\1pass", self.source, flags=re.M) if self.kind == "code" else "")

    @property
    def calls(self): return {ast.unparse(node.func) for node in ast.walk(self.tree) if isinstance(node, ast.Call)}


class Notebook:
    "A main chapter (12_search.ipynb), an appendix (a_files.ipynb), or the home page."
    def __init__(self, path):
        self.path, self.name = path, path.name
        self.cells = [Cell(i, cell["cell_type"], "".join(cell["source"]))
                      for i, cell in enumerate(json.loads(path.read_text())["cells"], 1)]
        self.code = [cell for cell in self.cells if cell.kind == "code"]
        self.texts = [cell for cell in self.cells if cell.kind == "markdown"]
        exports = re.search(r"^#\| *default_exp (\S+)", "\n".join(cell.source for cell in self.code), re.M)
        self.module = exports and exports[1]
        self.main, self.appendix = path.name[0].isdigit(), bool(re.match(r"[a-z]_", path.name))


class Book:
    "The notebooks of a repository, in the order of their names."
    def __init__(self, root):
        self.root = Path(root)
        self.notebooks = [Notebook(path) for path in sorted((self.root / "nbs").glob("*.ipynb"))]
        self.of_module = {nb.module: nb for nb in self.notebooks if nb.module}
        self.modules = sorted((self.root / PACKAGE).rglob("[!_]*.py"))
        self.public = runpy.run_path(self.root / PACKAGE / "__init__.py").get("_module_of", {})  # name -> module

    def imports(self, tree):
        "(line, module, name in it or None for the module itself, name here) of each import from the package."
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Import, ast.ImportFrom)): continue
            start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                package, _, path = f"{start}{alias.name}".partition(".")
                if package != PACKAGE: continue
                above, _, name = path.rpartition(".")
                if path in self.of_module: module, name = path, None
                else: module = above if above in self.of_module else self.public.get(path)
                if module: yield node.lineno, module, name, alias.asname or alias.name


def style(book):
    "ruff's complaints. A directive (`#| fig-alt: ...`) and a line with an address may be long."
    folders = [name for name in ("nbs", PACKAGE, "tests", "tools", "bench") if (book.root / name).exists()]
    ruff = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=json", *folders]
    done = subprocess.run(ruff, cwd=book.root, capture_output=True, text=True)
    if done.returncode > 1: sys.exit(done.stderr)
    cells = {(nb.path, cell.number): cell.source for nb in book.notebooks for cell in nb.cells}
    for found in json.loads(done.stdout):
        path, cell, row = Path(found["filename"]), found["cell"], found["location"]["row"]
        line = (cells[path, cell] if cell else path.read_text()).splitlines()[row - 1:row]
        if found["code"] == "E501" and (line[0].startswith("#|") or "://" in line[0]): continue
        yield path, cell, row, f"{found['code']} {found['message']}"


def docments(book):
    "Each parameter of a public function or method stands on its own line, with a comment that says what it is."
    for path in book.modules:
        if path.stem == "cli": continue  # typer's options carry their help
        lines, body = path.read_text().splitlines(), ast.parse(path.read_text()).body
        public = next((ast.literal_eval(o.value) for o in body if ast.unparse(o).startswith("__all__ =")), ())
        for node in body:
            if getattr(node, "name", "") not in public: continue
            for f in node.body if isinstance(node, ast.ClassDef) else [node]:
                if not isinstance(f, ast.FunctionDef) or (f.name.startswith("_") and f.name != "__init__"): continue
                args = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
                args = [a for a in args if a.arg not in ("self", "cls")]
                taken = [a.lineno for a in args]
                bad = [a.arg for a in args if "#" not in lines[a.lineno - 1] or taken.count(a.lineno) > 1]
                if bad: yield path, None, f.lineno, f"{f.name}: no line with a comment of its own for {', '.join(bad)}"


def private(book):
    "Names with an underscore are used in their module only. A test may use those of the module that it tests."
    parts = [(nb.path, c.number, c.tree, {nb.module}) for nb in book.notebooks for c in nb.code]
    for path in [path for name in ("tests", "tools", "bench") for path in sorted((book.root / name).glob("*.py"))]:
        tests = {m for m in book.of_module if path.stem.startswith(f"test_{m.split('.')[-1]}")}
        parts.append((path, None, ast.parse(path.read_text()), tests))
    whole = {}  # file -> {name here: the module that it is}
    for path, _, tree, _ in parts:
        whole.setdefault(path, {}).update({here: m for _, m, name, here in book.imports(tree) if name is None})
    for path, cell, tree, own in parts:
        used = [(line, module, name) for line, module, name, _ in book.imports(tree) if name]
        used += [(node.lineno, whole[path][ast.unparse(node.value)], node.attr) for node in ast.walk(tree)
                 if isinstance(node, ast.Attribute) and ast.unparse(node.value) in whole[path]]
        for line, module, name in used:
            if name.startswith("_") and not name.startswith("__") and module not in own:
                yield path, cell, line, f"{name} is private to {PACKAGE}.{module}"


def order(book):
    "A chapter builds on earlier ones, and on appendices that do. A cell with a picture may show where the way leads."
    needs = {module: {m for c in nb.code if c.has("export") for _, m, *_ in book.imports(c.tree)} - {module}
             for module, nb in book.of_module.items()}
    try: TopologicalSorter(needs).prepare()
    except CycleError as e: yield book.root / PACKAGE, None, None, f"imports in a circle: {', '.join(e.args[1])}"

    def ways(module, way=()):
        "From a module to the main chapters that it needs, through appendices."
        if module in way: return
        if not book.of_module[module].appendix: yield *way, module
        else: yield from (more for m in sorted(needs[module]) for more in ways(m, (*way, module)))

    for nb in book.notebooks:
        if not nb.main: continue
        for cell in nb.code:
            if cell.has("fig-alt") and not cell.has("export"): continue
            for line, module in sorted({(line, module) for line, module, *_ in book.imports(cell.tree)}):
                for way in ways(module):
                    there = book.of_module[way[-1]]
                    if there.name < nb.name or way == (nb.module,): continue
                    said = ", which needs ".join(way)
                    yield nb.path, cell.number, line, f"imports {said}: {there.name} is not earlier"


def weight(book):
    sizes = {nb.path: nb.path.stat().st_size for nb in book.notebooks}
    for nb in book.notebooks:
        if len(nb.cells) > MOST_CELLS: yield nb.path, None, None, f"{len(nb.cells)} cells, more than {MOST_CELLS}"
        if sizes[nb.path] > HEAVIEST: yield nb.path, None, None, f"{sizes[nb.path]:,} bytes, more than {HEAVIEST:,}"
    total = sum(sizes.values())
    if total > ALL_TOGETHER: yield book.root / "nbs", None, None, f"{total:,} bytes, more than {ALL_TOGETHER:,}"


def exercise(text, cells):
    "What is wrong with an exercise, given its text and the code cells up to the next one."
    if not re.search(r"<details>\s*<summary>Hint</summary>", text.source): return "no folded hint"
    tried = [cell for cell in cells if cell.has("notest")]
    if len(tried) != 2: return f"{len(tried)} cells with '#| notest', not a stub and its test"
    stub, test = tried
    folded = [c for c in cells if c.has("code-fold: true") and c.has('code-summary: "Solution"')]
    solution = next(iter(folded), stub)
    if "# your turn" not in stub.source: return "a stub without '# your turn'"
    if solution.number < test.number: return "no folded solution after the test"
    if any(map(solution.has, ("notest", "slow", "eval: *false"))): return "a solution that the test run leaves out"
    if not test.calls & solution.calls: return "a solution that does not run the test"


def chapters(book):
    "What a chapter has: how long it takes, what the case study did, three exercises that check themselves."
    for nb in book.notebooks:
        if not nb.main and not nb.appendix: continue
        if not any(re.search(r"^\*Reading: .*Running: .*Needs: .*\*$", c.source, re.M) for c in nb.texts[:3]):
            yield nb.path, None, None, "no line '*Reading: ... Running: ... Needs: ...*' under the title"
        note = re.compile(r"^::: *\{\.callout-note.*\}\s+(#+ )?\**In the case study", re.M)
        if nb.main and not any(note.search(c.source) for c in nb.texts):
            yield nb.path, None, None, "no '::: {.callout-note}' with the heading 'In the case study'"
        starts = [c for c in nb.texts if re.search(r"^\*\*Exercise \d+\.", c.source, re.M)]
        numbers = [int(n) for c in starts for n in re.findall(r"^\*\*Exercise (\d+)\.", c.source, re.M)]
        if numbers != [1, 2, 3] and (nb.main or starts):
            yield nb.path, None, None, f"exercises {numbers}, not [1, 2, 3]"
        for start, end in zip(starts, [*[c.number for c in starts[1:]], len(nb.cells) + 1]):
            wrong = exercise(start, [c for c in nb.code if start.number < c.number < end])
            if wrong: yield nb.path, start.number, None, f"an exercise with {wrong}"


def hints(book):
    for path in book.modules:
        text = path.read_text()
        if (n := len(text.splitlines())) > LONG_MODULE: yield path, None, None, f"hint: a module of {n} lines"
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): continue
            n = node.end_lineno - node.lineno + 1
            if n > LONG_FUNCTION: yield path, None, node.lineno, f"hint: {node.name} has {n} lines"


LAWS = style, docments, private, order, weight, chapters


def check(root, laws=LAWS):
    "The breaches of the laws, a line each: file, cell, line and what is wrong."
    book = Book(root)
    for law in laws:
        for path, cell, line, what in law(book):
            where = f"{path.relative_to(book.root)}" + f", cell {cell}" * bool(cell) + f", line {line}" * bool(line)
            yield f"{where}: {what}"


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[1]
    breaches = list(check(root))
    print(*breaches, *(check(root, [hints]) if "--hints" in sys.argv else ()), sep="\n")
    if breaches: sys.exit(f"{len(breaches)} breaches")

"""The API reference: a page for each module of xraycap, made from its signatures, docments and `raise` statements.

The example of a name is the first short cell of the notebooks that uses it, its own chapter first; where there is none,
a line of the module itself.
"""
import ast
import importlib
import inspect
import json
import pkgutil
import re
import textwrap
import warnings
from enum import EnumType

import nbformat
from fastcore.docments import docments

PACKAGE = "xraycap"
EMPTY = inspect.Parameter.empty


def own_methods(cls):
    "The public methods and properties that a class itself defines and documents, in the order of its source."
    kinds = classmethod, staticmethod, property
    return [(k, v) for k, v in vars(cls).items() if not k.startswith("_")
            and (inspect.isfunction(v) or isinstance(v, kinds)) and getattr(code_of(v), "__doc__", None)]


def code_of(o):
    "The function inside a class method, a property or a decorator, or None where there is no Python source."
    o = o.fget if isinstance(o, property) else inspect.unwrap(getattr(o, "__func__", o))
    try: return o if inspect.getsourcefile(o) and PACKAGE in o.__module__ and inspect.getsourcelines(o) else None
    except (TypeError, OSError, AttributeError): return None


def type_name(t):
    t = getattr(t, "__origin__", t) if hasattr(t, "__metadata__") else t  # Annotated[int, ...]: int
    if t is EMPTY or t is None or t is type(None): return ""
    if isinstance(t, str): return t
    return t.__name__ if isinstance(t, type) and not hasattr(t, "__origin__") else str(t).replace("typing.", "")


def plain(text):
    "Text on one line, in which -- is no dash."
    return " ".join(text.split()).replace("--", "\\-\\-")


def help_of(t):
    "The help that an option of the command line carries in its type."
    return next((o.help for o in getattr(t, "__metadata__", ()) if getattr(o, "help", None)), "")


def signature(o, name):
    "The call as it is written: `name(a, b: int = 3) -> list`, broken into lines where it is long."
    sig = inspect.signature(o)
    back = type_name(sig.return_annotation)
    args = []
    for p in sig.parameters.values():
        if p.name in ("self", "cls"): continue
        default = "" if p.default is EMPTY else p.default.__name__ if callable(p.default) else repr(p.default)
        default = re.sub(r"<.* at 0x.*>", "…", default)
        kind = "" if p.annotation is EMPTY or p.default is None else type_name(p.annotation)
        star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        default = (" = " if kind else "=") + default if default else ""
        args.append(star + p.name + (f": {kind}" if kind else "") + default)
    line = f"{name}({', '.join(args)})"
    if len(line) > 60: line = f"{name}(\n    " + ",\n    ".join(args) + ",\n)"
    return line + (f" -> {back}" if back and not inspect.isclass(o) else "")


def fields(cls):
    "What the comments in the source of a named tuple say about each field."
    try: return dict(re.findall(r"^    (\w+): [^#\n]*#\s*(.+)$", inspect.getsource(cls), re.M))
    except (TypeError, OSError): return {}


def source_line(obj, name, module):
    "Where a name is defined in its module, from 1; None for what no line there defines."
    try: return inspect.getsourcelines(obj)[1]
    except (TypeError, OSError): pass
    assigned = re.search(rf"^(\w+, )*{name}(, \w+)* = ", inspect.getsource(module), re.M)
    return inspect.getsource(module)[:assigned.start()].count("\n") + 1 if assigned else None


def message_part(node):
    "A piece of an error's message: its words, or {name} for what is filled in."
    if isinstance(node, ast.Constant): return str(node.value)
    value = getattr(node, "value", node)
    return f"{{{value.id}}}" if isinstance(value, ast.Name) else "…"


def raised(fn, seen=()):
    "What a function raises, and its helpers of the same module: (error's name, its message with {expressions})."
    fn, found = code_of(fn), []
    if fn is None or fn in seen: return found
    tree = ast.parse(textwrap.dedent(inspect.getsource(fn)))
    for node in ast.walk(tree):
        exc = getattr(node, "exc", None)
        if isinstance(exc, ast.Call) and isinstance(exc.func, ast.Name) and exc.args:
            text = exc.args[0]
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            found.append((exc.func.id, "".join(message_part(p) for p in parts)))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            helper = getattr(fn, "__globals__", {}).get(node.func.id)
            if inspect.isfunction(helper) and helper.__module__ == fn.__module__: found += raised(helper, (*seen, fn))
    return [(e, m) for e, m in dict.fromkeys(found) if m.strip("… ")]


def example(name, module, chapters):
    "The first short visible cell that calls `name`, and its notebook: the own chapter, or one that imports the name."
    cls, _, method = name.partition(".")
    constant = rf"(?<![\w.]){name}[(.\[]|\b{name}\b"
    call = re.compile(rf"\.{method}\b" if method else constant if cls.isupper() else rf"(?<![\w.]){name}[(.]")
    known = re.compile(rf"from {module} import [^\n]*\b({cls}\b|\*)")
    chapters = [pc for n, pc in enumerate(chapters) if n == 0 or any(known.search(c.source) for c in pc[1])]
    for most in 12, 25:
        for path, cells in chapters:
            for cell in cells:
                if call.search(cell.source) and len(cell.source.splitlines()) <= most: return cell, path
    return None, None


def visible_cells(nb):
    "The cells that may serve as examples: neither exported nor hidden, nor of an exercise."
    hidden = re.compile(r'^(#\| *(export|exporti|hide|default_exp|echo: *false|code-summary: *"Solution")|def check_\d|'
                        r'check_\d\()|# your turn', re.M)
    return [c for c in nb.cells if c.cell_type == "code" and not hidden.search(c.source)
            and "def " not in c.source.split("\n")[0]]


def commands(module, obj):
    "The lines at the end of a command's help, where `obj` is a command of the module's program."
    epilogs = [c.epilog for c in getattr(getattr(module, "app", None), "registered_commands", ()) if c.callback is obj]
    return [line.strip() for line in epilogs[0].partition("Examples:\n")[2].splitlines()] if epilogs else []


def used_by(name, module):
    "The first other name of a module whose code uses `name`, and the line that does; None where there is none."
    # neither a docstring nor a comment nor an annotation
    use = re.compile(rf"^(?! *[\"']| *\) ->| *\w+: )[^#`\n]*(?<![\w.\"'`]){name}\b.*", re.M)
    for other in module.__all__:
        fn = code_of(getattr(module, other))
        if other == name or not fn: continue
        if found := use.search(inspect.getsource(fn).partition("\n")[2]): return other, found[0].strip()
    return None


def example_markdown(name, module, chapters, titles):
    obj = getattr(module, name, None)
    if lines := commands(module, obj): return "**Example**\n\n```sh\n" + "\n".join(lines) + "\n```"
    cell, path = example(name, module.__name__, chapters)
    if cell is None:
        use = used_by(name, module) if obj is not None else None
        return "**Example**, from [`{0}`](#{0})\n\n```python\n{1}\n```".format(*use) if use else ""
    code = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|")).strip()
    drawn = lambda o: any(k.startswith("image/") or k.endswith("html") for k in o.get("data", {}))
    texts = ["".join(o.get("text") or (o.get("data") or {}).get("text/plain", "")) for o in cell.get("outputs", [])
             if o.output_type != "error" and o.get("name") != "stderr" and not drawn(o)]
    text = "\n".join(texts).rstrip()
    printed = f"\n\n```\n{text}\n```" if text and len(text) < 1200 and "object at 0x" not in text else ""
    return f"**Example**, from [{titles[path]}](../{path.name})\n\n```python\n{code}\n```{printed}"


def entry(module, name, obj, level, source, chapters, titles):
    "Heading, signature, what it is, parameters, returns, errors and an example of one name."
    short, fn = name.rpartition(".")[2], code_of(obj) or obj
    out = [f"{'#' * level} {name} {{#{name}}}"]
    kind = "class" if inspect.isclass(obj) else "property" if isinstance(obj, property) else ""
    if line := source_line(fn, name, module):
        out.append(f"[source]({source}/{module.__name__.replace('.', '/')}.py#L{line}){{.source-link}}")
    about = re.search(rf"^{name}\b[^#\n]*# (.+)$", inspect.getsource(module), re.M)  # a constant's, a named tuple's
    comment = about[1][0].upper() + about[1][1:].rstrip(".") + "." if about else ""
    if not (callable(fn) and hasattr(fn, "__name__")) or isinstance(fn, EnumType):  # a constant, or the Typer app
        out.append(comment)
        value = " | ".join(repr(o.value) for o in obj) if isinstance(obj, EnumType) else repr(obj)
        if " at 0x" not in value and "Path(" not in value:
            out.append(f"```python\n{textwrap.shorten(f'{name} = {value}', 300, placeholder=' …')}\n```")
    else:
        if kind == "property": out.append(f"```python\n.{short}\n```")
        else: out.append(f"```python\n{signature(obj if kind else fn, short)}\n```")
        no_dash = lambda match: match[0] if match[0][0] == "`" else "\\-\\-"
        said = re.sub(r"`[^`]*`|(?<=\W)--(?=\w)", no_dash, inspect.cleandoc(fn.__doc__ or ""))
        out.append(comment if said.startswith(f"{short}(") else said)
        docs = docments(fn, full=True, returns=True) if kind != "property" else {}
        about = {n: d.docment or help_of(d.anno) for n, d in docs.items() if n not in ("self", "cls", "return")}
        if hasattr(obj, "_fields"): about = fields(obj)
        lines = [f"- `{n}`: {plain(text)}" for n, text in about.items() if text]
        if lines: out.append("**Parameters**\n\n" + "\n".join(lines))
        back = docs.get("return")
        if back is not None and back.docment: out.append(f"**Returns** {plain(back.docment)}")
        if errors := raised(obj.__init__ if inspect.isclass(obj) else obj):
            out.append("**Errors**\n\n" + "\n".join(f"- `{e}`: {plain(m)}" for e, m in errors))
    out.append(example_markdown(name, module, chapters, titles))
    return "\n\n".join(o for o in out if o), name


def write(notebooks, out, source):
    "Write the pages to the folder `out`; `source` is where links to the code begin. Gives {module: its names}."
    paths = sorted((p for p in notebooks.glob("*_*.ipynb")), key=lambda p: (not p.name[0].isdigit(), p.name))
    books = {p: nbformat.read(p, as_version=4) for p in paths}  # the chapters, then the appendices
    titles = {p: re.search(r"^# (.*)", nb.cells[0].source, re.M)[1] for p, nb in books.items()}
    cells = {p: visible_cells(nb) for p, nb in books.items()}
    home = {m[1]: p for p, nb in books.items() for c in nb.cells
            if (m := re.match(r"#\| *default_exp (\S+)", c.source))}
    package = importlib.import_module(PACKAGE)
    found = [m.name for m in pkgutil.walk_packages(package.__path__, f"{PACKAGE}.") if not m.ispkg]
    names = [m.removeprefix(f"{PACKAGE}.") for m in found if not m.rpartition(".")[2].startswith("_")]  # body.anatomy
    order = {p: i for i, p in enumerate(paths)}
    names.sort(key=lambda m: (order.get(home.get(m), len(order)), m))
    anchors, rows = {}, []
    out.mkdir(exist_ok=True)
    for name in names:
        with warnings.catch_warnings():  # of the libraries that a module imports
            warnings.simplefilter("ignore")
            module, chapter = importlib.import_module(f"{PACKAGE}.{name}"), home.get(name)
        chapters = sorted(cells.items(), key=lambda pc: (pc[0] != chapter, pc[0].name))
        entries = []
        for n in module.__all__:
            obj = getattr(module, n)
            entries.append(entry(module, n, obj, 2, source, chapters, titles))
            if inspect.isclass(obj):
                entries += [entry(module, f"{n}.{k}", v, 3, source, chapters, titles) for k, v in own_methods(obj)]
        anchors[name] = {a for _, a in entries}
        where = f"Written in the chapter [{titles[chapter]}](../{chapter.name}).\n\n" if chapter else ""
        about = (module.__doc__ or "").strip()
        head = f'---\ntitle: "{PACKAGE}.{name}"\ndescription: {json.dumps(about)}\n---\n\n{where}'
        (out/f"{name}.qmd").write_text(head + "\n\n".join(text for text, _ in entries) + "\n")
        rows.append(f"## [{PACKAGE}.{name}]({name}.qmd)\n\n{about}.\n\n"
                    + " · ".join(f"[`{n}`]({name}.qmd#{n})" for n in module.__all__))
    top = ", ".join(f"[`{n}`]({package._module_of[n]}.qmd#{n})" for n in package.__all__)
    head = "---\ntitle: All names\ndescription: Every public name, by module, in the order of the chapters\n---\n\n"
    (out/"index.qmd").write_text(f"{head}`import {PACKAGE}` offers {top}.\n\n" + "\n\n".join(rows) + "\n")
    return anchors

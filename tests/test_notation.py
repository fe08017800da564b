"The glossary: each term stands in the chapter that it leads to, and in alphabetical order."
import json
import re
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parents[1] / "nbs"


def sources(name): return ["".join(cell["source"]) for cell in json.loads((NBS / name).read_text())["cells"]]


def terms():
    "(term, chapter) of each row of the glossary"
    text = "\n".join(sources("z_notation.ipynb"))
    rows = text.partition("## Terms of the field")[2].partition("## Words of the trade")[0]
    return re.findall(r"^\| (.+?) \| .+ \| \[\w+\]\((\w+\.ipynb)\) \|$", rows, re.M)


def test_there_are_terms_in_order():
    names = [term.lower() for term, _ in terms()]
    assert len(names) > 60 and names == sorted(names) and len(set(names)) == len(names)


@pytest.mark.parametrize("term, chapter", terms())
def test_the_chapter_has_the_term(term, chapter):
    text = " ".join(s for s in sources(chapter) if "Five questions to recall it by" not in s).lower()
    missing = [word for word in re.findall(r"[a-z]+", term.lower()) if word not in text]
    assert not missing

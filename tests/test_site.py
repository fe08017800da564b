"The site, built from the notebooks as they are, without running them: links, pictures, formulas, API, search, phone."
import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]
REPO = "https://github.com/xraycap/xraycap"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "(folder of the site, what the build printed): `make docs` in a copy, with smalldocs also where Quarto is installed"
    copy = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copytree(ROOT / "xraycap", copy / "xraycap", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    for name in "settings.ini", "_quarto.yml": shutil.copy(ROOT / name, copy)
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    env["PATH"] = os.pathsep.join([str(ROOT / "tools"), str(Path(sys.executable).parent), "/usr/bin", "/bin"])
    done = subprocess.run(["nbdev_docs", "--n_workers", "0"], cwd=copy, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "_docs", done.stdout + done.stderr


@pytest.fixture(scope="module")
def pages(built):
    "{page's name: its soup}"
    files = sorted(built[0].rglob("*.html"))
    return {str(p.relative_to(built[0])): BeautifulSoup(p.read_text(), "html.parser") for p in files}


def notebooks(): return sorted(p.name for p in (ROOT / "nbs").glob("*.ipynb"))


def chapters():
    "All but the home page, appendices included."
    return [name for name in notebooks() if name != "index.ipynb"]


def sidebar():
    "{section: the notebooks that it lists}, and the route's numbers"
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    sections = config["website"]["sidebar"]["contents"]
    return {s["section"]: s["contents"] for s in sections if "section" in s}, config["route"].split()


def test_no_warning(built): assert built[1].strip() == ""


def test_every_notebook_is_a_page_in_the_sidebar(pages):
    sections, _ = sidebar()
    assert list(sections) == ["The data", "Numbers", "Models", "Scores", "Use", "Appendices", "API"]
    assert sections.pop("API") == "api"
    assert sum(sections.values(), []) == chapters()  # the numbered ones in order, then the appendices
    assert all(re.match("[a-z]_", name) for name in sections["Appendices"])
    for name in notebooks(): assert name.replace(".ipynb", ".html") in pages


def test_the_sidebar_numbers_the_chapters_and_marks_a_route(pages):
    _, route = sidebar()
    assert len(route) == 13 and {name.partition("_")[0] for name in chapters()} >= set(route)
    for page in "index.html", "12_search.html", "a_files.html", "api/search.html":
        bar = pages[page].select_one("#quarto-sidebar")
        entries = {os.path.basename(a["href"]): a.get_text().strip() for a in bar.select("a.sidebar-link[href]")}
        for name in chapters():
            text = entries[name.replace(".ipynb", ".html")]
            number = name.partition("_")[0]
            shown = number.upper() if len(number) == 1 else number  # 12, 15b, A
            assert text.startswith(f"{shown}\u2002") and text.endswith("◆") == (number in route), text
        meaning = bar.select_one(".quarto-sidebar-header a")
        assert "◆" in meaning.parent.text and "own route" in meaning.text
        assert meaning["href"].endswith("index.html#two-routes-through-the-book")
    for name in chapters():
        said = pages[name.replace(".ipynb", ".html")].main.select_one(".route")
        assert bool(said) == (name.partition("_")[0] in route), name


def broken(page, soup, pages, folder):
    "The links of a page that lead nowhere."
    for tag in soup.find_all(True):
        for key in "href", "src":
            url = tag.get(key)
            if not url or url == "#": continue
            parts = urlsplit(url)
            if url.startswith(f"{REPO}/blob/main/"):  # a file of this repository, and a line that it has
                file = ROOT / parts.path.split("/blob/main/")[1]
                lines = file.read_text().splitlines() if file.exists() else []
                if not lines or (parts.fragment and int(parts.fragment[1:]) > len(lines)): yield url
            if parts.scheme or parts.netloc: continue
            there = Path(page).parent / unquote(parts.path) if parts.path else page
            target = os.path.normpath(folder / there)
            if os.path.isdir(target): target += "/index.html"
            if not os.path.exists(target): yield url
            elif parts.fragment and target.endswith(".html"):
                there = pages[os.path.relpath(target, folder)]
                if not there.find(id=unquote(parts.fragment)): yield url


def test_links_and_anchors_resolve(built, pages):
    lost = [(page, url) for page, soup in pages.items() for url in broken(page, soup, pages, built[0])]
    assert not lost, lost


def test_the_link_checker_sees_a_broken_link(built, pages):
    addresses = "no.html", "index.html#no", "#no", "index.html", f"{REPO}/blob/main/no.py"
    soup = BeautifulSoup("".join(f'<a href="{address}">a</a>' for address in addresses), "html.parser")
    assert len(list(broken("index.html", soup, pages | {"index.html": soup}, built[0]))) == 4


def test_no_link_is_left_as_text(pages):
    for page, soup in pages.items():
        for tag in soup.select("main p, main li"): assert "](" not in tag.get_text(), (page, tag.get_text()[:200])


def test_pages_need_nothing_from_the_net(built, pages):
    for page, soup in pages.items():
        fetched = [tag.get("src") or tag.get("href") for tag in soup.find_all(["script", "link", "img", "iframe"])]
        assert not [url for url in fetched if url and urlsplit(url).netloc], page
    for css in built[0].rglob("*.css"): assert not re.search(r"(@import|url\()[\s'\"(]*https?:", css.read_text()), css


def test_each_picture_has_an_alternative_text(pages):
    for name in notebooks():
        for i, cell in enumerate(nbformat.read(ROOT / "nbs" / name, as_version=4).cells):
            if any(kind.startswith("image/") for o in cell.get("outputs", []) for kind in o.get("data", {})):
                told = re.search(r'^#\| *fig-alt: *"?.{20}', cell.source, re.M)
                assert told, f"{name}, cell {i}: a picture without '#| fig-alt:'"
    for page, soup in pages.items():
        for img in soup.select("main img"): assert len(img.get("alt", "")) > 20, (page, img.get("src"))


def test_formulas_are_mathml(pages):
    assert sum(len(soup.find_all("math")) for soup in pages.values()) > 20
    for page, soup in pages.items():
        for math in soup.select(".math"): assert math.find("math") and "\\(" not in math.text, (page, math.text)


def test_nothing_of_the_notebook_machinery_is_left(pages):
    machinery = "#|", "show_doc(", "nbdev_export(", "@fig-", "/content ]", "<Figure size", "Traceback", "\x1b", ":::"
    for page, soup in pages.items():
        for left in machinery: assert left not in soup.main.text, (page, left)
        for pre in soup.select(".cell-output pre"): assert "%|" not in pre.text, (page, "a progress bar", pre.text[:80])


def test_each_page_leads_on(pages):
    last = list(yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]["sidebar"]["contents"])[-1]
    assert last["section"] == "API"
    ways = {page: [a["href"] for a in soup.select(".page-navigation a")] for page, soup in pages.items()}
    assert sorted(map(len, ways.values()))[:3] == [1, 1, 2], ways  # only the first and the last page have one way


def test_chapters_open_in_colab(pages):
    colab = REPO.replace("github.com", "colab.research.google.com/github")
    for name in chapters():
        badge, = pages[name.replace(".ipynb", ".html")].main.select("a[href*='colab.research']")  # once
        assert badge["class"] == ["colab"] and badge["href"] == f"{colab}/blob/main/nbs/{name}"
        code = [c.source for c in nbformat.read(ROOT / "nbs" / name, as_version=4).cells if c.cell_type == "code"]
        assert "[ -e /content ] && pip install" in code[0] and "#| eval: false" in code[0], name


def test_the_api_has_each_public_name(pages):
    examples = 0
    for file in (ROOT / "xraycap").rglob("[a-z]*.py"):
        path = file.relative_to(ROOT / "xraycap")
        module = ".".join(path.with_suffix("").parts)
        body, soup = ast.parse(file.read_text()).body, pages[f"api/{module}.html"]
        assert "Written in the chapter" in soup.main.text, module
        public = next(ast.literal_eval(o.value) for o in body if ast.unparse(o).startswith("__all__ ="))
        for name in public:
            heading = soup.find(id=name)
            assert heading, (file, name)
            entry = heading if heading.name == "section" else heading.parent
            if any(isinstance(o, (ast.FunctionDef, ast.ClassDef)) and o.name == name for o in body):
                assert name in entry.select_one("pre").text, (file, name)
                source = entry.select_one(".source-link")["href"]
                assert source.startswith(f"{REPO}/blob/main/xraycap/{path.as_posix()}#L"), (file, name)
            examples += "Example" in entry.text
    assert examples > 100
    text = pages["api/search.html"].find(id="beam_search").text
    for said in "k: int = 3", "hypotheses kept for each study", "Returns", "The beam width k is", "Example":
        assert said in text, said


def test_home(pages):
    home = pages["index.html"]
    assert home.select_one("main img") and home.select_one("main table")
    assert "The radiologist" in home.main.text and "simulated" in home.main.text


def visit(browser, url, **context):
    "A page, and what it asked of the net or complained of"
    page, bad = browser.new_page(**context), []
    page.on("request", lambda r: bad.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    page.on("console", lambda m: bad.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: bad.append(str(e)))
    page.goto(url)
    return page, bad


def test_every_page_fits_a_phone(built, pages, browser):
    page, bad = visit(browser, (built[0] / "index.html").as_uri(), viewport={"width": 390, "height": 844})
    for name in pages:
        page.goto((built[0] / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390, name
        inside = "[...document.querySelectorAll('main img')].every(i => i.getBoundingClientRect().right <= 391)"
        assert page.evaluate(inside), name
    assert not bad, bad


def test_search_works_from_a_file(built, browser):
    page, bad = visit(browser, (built[0] / "api/text.html").as_uri(), viewport={"width": 1280, "height": 900})
    places = {"beam_search": "api/search.html#beam_search", "the route": "index.html#two-routes-through-the-book"}
    for words, href in places.items():
        page.fill("#quarto-search input", words)
        page.wait_for_selector(f".search-result[href$='{href}']")
    first = page.locator(".search-result").first.get_attribute("href")
    page.press("#quarto-search input", "ArrowDown")
    page.press("#quarto-search input", "Enter")
    page.wait_for_url(f"**/{first.rpartition('/')[2]}")
    assert not bad, bad


def test_dark_mode_follows_the_system_and_the_button(built, browser):
    def dark(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(c => c < 80)")

    url = (built[0] / "index.html").as_uri()
    assert not dark(visit(browser, url, color_scheme="light")[0])
    page, bad = visit(browser, url, color_scheme="dark")
    assert dark(page)
    page.click(".quarto-color-scheme-toggle")
    assert not dark(page)
    assert not bad, bad

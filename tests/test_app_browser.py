"The app as people meet it, in Chromium: drop, read, point, press keys, save; and on a telephone."
import json
from threading import Thread

import numpy as np
import pytest
from conftest import write_dicom
from PIL import Image

from xraycap.app import create_app, make_server
from xraycap.captioner import Captioner, example_study

EXAMPLE = [str(example_study()[view]) for view in ("frontal", "lateral")]


@pytest.fixture(scope="module")
def address():
    server = make_server(create_app(Captioner.load("attention")), port=0)
    Thread(target=server.run, daemon=True).start()
    yield f"http://127.0.0.1:{server.effective_port}"
    server.close()


@pytest.fixture
def page(browser, address):
    "A page that fails the test when it asks another machine for anything, or the browser complains."
    page = browser.new_page(viewport=dict(width=1280, height=900))
    page.set_default_timeout(90_000)  # a busy machine is no mistake of the page
    complaints = []
    page.on("request", lambda r: r.url.startswith((address, "data:", "blob:")) or complaints.append(r.url))
    page.on("console", lambda m: m.type == "error" and "status of 4" not in m.text and complaints.append(m.text))
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.goto(address)
    yield page
    page.close()
    assert complaints == []


def painted(page, view):
    "Mean opacity of the attention over a view, from 0 to 255; 0 when it is not shown."
    return page.evaluate("""v => { const c = document.querySelectorAll('#views canvas')[v];
        if (!c.classList.contains('on')) return 0;
        const x = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        let sum = 0; for (let i = 3; i < x.length; i += 4) sum += x[i]; return sum / (x.length / 4); }""", view)


def describe(page, *files):
    page.set_input_files("#files", list(files))
    page.click("#go")
    page.wait_for_selector("#result:not([hidden])")
    return page.locator("#sentences button")


def test_choose_read_point_save(page, tmp_path):
    sentences = describe(page, *EXAMPLE)
    expected = Captioner.load("attention").report(*EXAMPLE).sentences
    assert sentences.all_inner_texts() == expected
    assert [painted(page, v) for v in (0, 1)] == [0, 0]
    maps = []
    for i in range(len(expected)):
        sentences.nth(i).hover()
        assert max(painted(page, v) for v in (0, 1)) > 5 and "%" in page.inner_text("#looked")
        maps.append(page.evaluate("document.querySelector('#views canvas').toDataURL()"))
    assert len(set(maps)) == len(maps)  # each sentence has its own
    page.hover("h1")
    assert [painted(page, v) for v in (0, 1)] == [0, 0]
    saved = {}
    for kind in "text", "json":
        with page.expect_download() as download: page.click(f"#as-{kind}")
        saved[kind] = open(download.value.path(), encoding="utf-8").read()
    assert all(s in saved["text"] for s in expected) and "Not for diagnosis" in saved["text"]
    report = json.loads(saved["json"])
    assert report["sentences"] == expected and "views" not in report and np.shape(report["attention"])[1:] == (2, 7, 7)


def test_dropped_files_find_their_view(page):
    transfer = page.evaluate_handle("""() => { const t = new DataTransfer();
        for (const name of ['lateral.png', 'frontal.png']) t.items.add(new File(['x'], name)); return t; }""")
    page.dispatch_event("#drop", "drop", dict(dataTransfer=transfer))
    assert "frontal.png" in page.locator("#chosen li").first.inner_text()
    page.click("#swap")
    assert "lateral.png" in page.locator("#chosen li").first.inner_text()
    page.click("#chosen button >> nth=0")
    assert page.locator("#chosen li").count() == 1
    assert page.url.endswith("/")  # the browser did not open the file


def test_warnings_stand_above_the_findings(page, tmp_path):
    describe(page, *EXAMPLE)
    assert page.is_hidden("#warnings")
    view = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    describe(page, str(write_dicom(tmp_path / "a.dcm", view, WindowCenter=30_000, WindowWidth=100)))
    assert "a.dcm: The display window in the file leaves 1 of 256 greys" in page.inner_text("#warnings")
    assert page.locator("#warnings").bounding_box()["y"] < page.locator("#sentences").bounding_box()["y"]
    with page.expect_download() as download: page.click("#as-text")
    assert page.inner_text("#warnings") in open(download.value.path(), encoding="utf-8").read()


def test_one_picture(page):
    assert describe(page, EXAMPLE[0]).count() > 0 and page.locator("#views img").count() == 1


def test_what_is_asked_is_read_and_concluded(page, browser):
    assert page.locator("#indication").count() == 0  # the attention model reads nothing
    describe(page, *EXAMPLE)
    assert page.is_hidden("#concluded")
    server = make_server(create_app(Captioner.load("reader")), port=0)
    Thread(target=server.run, daemon=True).start()
    asked = browser.new_page()
    asked.set_default_timeout(90_000)
    try:
        asked.goto(f"http://127.0.0.1:{server.effective_port}")
        asked.get_by_label("Why does the patient come?").fill("chest pain")
        sentences = describe(asked, *EXAMPLE).all_inner_texts()
        want = Captioner.load("reader").report(*EXAMPLE, indication="chest pain")
        assert (sentences, asked.inner_text("#impression")) == (want.sentences, want.impression)
        with asked.expect_download() as download: asked.click("#as-json")
        assert json.load(open(download.value.path(), encoding="utf-8"))["indication"] == "chest pain"
    finally:
        asked.close()
        server.close()


def test_an_example(page):
    page.click("#gallery button >> nth=0")
    page.wait_for_selector("#result:not([hidden])")
    assert "radiologist wrote" in page.inner_text("#radiologist") and "simulated" in page.inner_text("#views")
    assert example_study()["findings"] in page.inner_text("#radiologist")


def test_mistakes_are_sentences(page, tmp_path):
    letter = tmp_path / "letter.png"
    letter.write_text("Dear colleague")
    page.set_input_files("#files", [str(letter)])
    page.click("#go")
    page.wait_for_selector("#error:not([hidden])")
    assert "letter.png is not a PNG, JPEG, TIFF or DICOM file" in page.inner_text("#error")
    assert page.is_hidden("#result") and page.is_hidden("#working")
    page.set_input_files("#files", [*EXAMPLE, str(letter)])
    assert "Two X-rays" in page.inner_text("#error")
    large = tmp_path / "large.png"
    large.write_bytes(b"\0" * (20 * 2**20 + 1))
    page.set_input_files("#files", [str(large)])
    assert "20 MB" in page.inner_text("#error")
    page.click("#chosen button")
    assert describe(page, *EXAMPLE).count() > 0 and page.is_hidden("#error")


def test_names_of_files_are_text(page, tmp_path):
    evil = tmp_path / "<img src=x onerror=document.title=1>.png"
    Image.linear_gradient("L").save(evil)
    describe(page, str(evil))
    assert page.title() != "1" and page.locator("#chosen img").count() == 1


def test_with_the_keyboard_only(page):
    focus = "document.activeElement.id || document.activeElement.dataset.uid || document.activeElement.textContent"
    page.keyboard.press("Tab")
    assert page.evaluate(focus) == "files"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the first example
    page.wait_for_selector("#result:not([hidden])")
    assert page.evaluate(focus) == "result-title"
    page.keyboard.press("Tab")
    assert max(painted(page, v) for v in (0, 1)) > 5
    page.keyboard.press("Enter")
    assert page.get_attribute("#sentences button >> nth=0", "aria-pressed") == "true"
    page.keyboard.press("Escape")
    assert [painted(page, v) for v in (0, 1)] == [0, 0]
    assert page.evaluate("document.querySelector('#sentences button').matches(':focus-visible')")


def test_progress_and_stop(page):
    page.route("**/api/report", lambda route: None)  # never answered
    page.set_input_files("#files", EXAMPLE)
    page.click("#go")
    page.wait_for_selector("progress", state="visible")
    assert "Reading" in page.inner_text("#doing") and "Reading" in page.inner_text("#said")
    page.click("#stop")
    assert page.is_hidden("#working") and page.is_hidden("#error") and page.is_visible("#go")
    page.unroute_all(behavior="ignoreErrors")


def test_on_a_telephone(browser, address):
    for scheme in "light", "dark":
        size = dict(width=390, height=844)
        context = browser.new_context(viewport=size, has_touch=True, is_mobile=True, color_scheme=scheme)
        phone = context.new_page()
        phone.set_default_timeout(90_000)
        phone.goto(address)
        wide = lambda: phone.evaluate("document.documentElement.scrollWidth")
        assert wide() == 390
        sentences = describe(phone, *EXAMPLE)
        assert wide() == 390
        last = sentences.nth(sentences.count() - 1)
        last.tap()
        assert last.get_attribute("aria-pressed") == "true" and max(painted(phone, v) for v in (0, 1)) > 5
        boxes = [phone.locator("#views img").nth(v).bounding_box() for v in (0, 1)] + [last.bounding_box()]
        for box in boxes:
            assert 0 <= box["x"] and box["x"] + box["width"] <= 390
            assert 0 <= box["y"] and box["y"] + box["height"] <= 844
        assert last.bounding_box()["height"] >= 36  # a finger's width
        context.close()


def test_text_stands_out(page):
    "Contrast of at least 4.5 to 1 between text and what is behind it (WCAG 2.1, AA), light and dark."
    contrast = """() => {
        const linear = x => (x /= 255) <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
        const light = c => {
            const [r, g, b] = c.match(/[\\d.]+/g).map(linear);
            return .2126 * r + .7152 * g + .0722 * b; };
        const behind = n => {
            for (; n; n = n.parentElement) {
                const c = getComputedStyle(n).backgroundColor;
                if (!/, 0\\)$/.test(c)) return c; } };
        const tags = 'h1, h2, h3, p, button, label, summary, a, blockquote, figcaption';
        return [...document.querySelectorAll(tags)].filter(n => n.offsetParent && n.textContent.trim()).map(n => {
            const [a, b] = [getComputedStyle(n).color, behind(n)].map(light).sort((x, y) => y - x);
            return (a + .05) / (b + .05); }); }"""
    describe(page, *EXAMPLE)
    for scheme in "light", "dark":
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate(contrast)
        assert len(found) > 20 and min(found) >= 4.5

"The four widgets in JupyterLab, in Chromium: a slider moved by keyboard, or a word clicked, changes the picture."
import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

cells = ["""from xraycap import phantom_sliders
body = phantom_sliders(11)
body""", """import pandas as pd
from xraycap import study_browser
rows = [(11, 'phantom-11', 'phantom-11-lateral', 'The heart is large.', ['Cardiomegaly']),
        (12, 'phantom-12', 'phantom-12-lateral', 'Clear lungs.', ['normal'])]
study_browser(pd.DataFrame(rows, columns=['uid', 'frontal', 'lateral', 'findings', 'mesh']))""", """import torch
from xraycap import AttentionDecoder, Captioner, Vocab, attention_explorer
from xraycap.captioner import example_study
torch.manual_seed(2)  # random weights that give finished reports of 1 to 3 words
vocab = Vocab('the heart is large lungs are clear no effusion .'.split())
decoder = AttentionDecoder(len(vocab), hidden=16, attention=8)
for p in decoder.parameters(): p.data *= 1.7
captioner, example = Captioner(decoder, vocab, dict(encoder='chest', images='phantom')), example_study()
attention_explorer(captioner.report(example['frontal'], example['lateral']))""", """from xraycap import beam_explorer
beam_explorer(captioner, example['frontal'], example['lateral'])"""]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "The address of a notebook with the widgets in a JupyterLab on loopback that knows nothing of the user's settings."
    if importlib.util.find_spec("jupyterlab") is None:
        pytest.skip("JupyterLab is not installed: pip install -e '.[dev]'")
    root = tmp_path_factory.mktemp("lab")
    kernel = dict(kernelspec=dict(name="python3", display_name="python3"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=kernel)
    nbformat.write(notebook, root/"widgets.ipynb")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token = secrets.token_hex(16)
    own = {name: str(root/name.lower()) for name in (
        "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR", "XRAYCAP_HOME", "HOME")}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}"]
    quiet = root/"jupyterlab_settings_dir/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with open(root/"log", "w") as log:
        server = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (root/"log").read_text()
                time.sleep(.25)
        yield f"http://127.0.0.1:{port}/lab/tree/widgets.ipynb?token={token}"
    finally:
        server.terminate()  # the server ends its kernels before it goes
        server.wait(20)


@pytest.fixture(scope="module")
def page(lab, browser):
    "The notebook, run from the top."
    page = browser.new_page(viewport=dict(width=1280, height=1600))
    page.set_default_timeout(180_000)
    page.goto(lab)
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
    page.get_by_text("| Idle").wait_for()  # a kernel that is still starting makes JupyterLab ask which one is wanted
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.locator(".jp-Cell img.widget-image").nth(3).wait_for()
    yield page
    page.close()


def pixels(picture):
    "The picture itself, and not a screenshot, which also depends on where on the page it has come to stand."
    picture.page.wait_for_function("img => img.complete && img.naturalWidth > 0", arg=picture.element_handle())
    return picture.evaluate("""img => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
        canvas.getContext("2d").drawImage(img, 0, 0);
        return canvas.toDataURL();
    }""")


def changed(picture, before):
    "Wait until the picture differs from `before`; its pixels then."
    for _ in range(900):
        if (now := pixels(picture)) != before: return now
        picture.page.wait_for_timeout(100)
    raise AssertionError("the picture did not change in 90 seconds")


def becomes(picture, wanted):
    "Wait until the picture is `wanted`; a slider on its way draws others."
    for _ in range(900):
        if pixels(picture) == wanted: return
        picture.page.wait_for_timeout(100)
    raise AssertionError("the picture did not become what it should in 90 seconds")


def test_a_findings_slider_changes_the_phantom_and_back(page):
    widget, picture = page.locator(".jp-Cell").nth(0), page.locator(".jp-Cell").nth(0).locator("img.widget-image")
    healthy = pixels(picture)
    widget.get_by_role("tab", name="Heart and bones").click()
    handle = widget.locator(".widget-hslider", has_text="Cardiomegaly").get_by_role("slider")
    handle.focus()
    page.keyboard.press("ArrowRight")
    mild = changed(picture, healthy)
    page.keyboard.press("ArrowRight")
    assert changed(picture, mild) != healthy
    page.keyboard.press("Home")
    becomes(picture, healthy)


def test_the_side_waits_for_its_finding_and_is_reached_by_tab(page):
    widget, picture = page.locator(".jp-Cell").nth(0), page.locator(".jp-Cell").nth(0).locator("img.widget-image")
    widget.get_by_role("tab", name="Pleura").click()
    row = widget.locator(".widget-hbox", has=page.locator(".widget-label", has_text="Pneumothorax")).last
    side = row.locator("select")
    assert side.is_disabled()
    healthy = pixels(picture)
    row.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    right = changed(picture, healthy)
    page.keyboard.press("Tab")  # the slider's value, which can be typed
    page.keyboard.press("Tab")
    assert side.evaluate("node => node === document.activeElement")
    for key in ("Enter", "ArrowDown", "Enter"): page.keyboard.press(key)  # JupyterLab takes the arrow of a closed list
    changed(picture, right)
    assert "Pneumothorax/left" in widget.locator("code").last.inner_text()


def test_browsing_and_searching_change_picture_and_words(page):
    widget, picture = page.locator(".jp-Cell").nth(1), page.locator(".jp-Cell").nth(1).locator("img.widget-image")
    first = pixels(picture)
    widget.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    changed(picture, first)
    widget.locator("p", has_text="Clear lungs.").wait_for()
    widget.locator("input[type=text]").first.fill("heart")
    widget.locator("mark", has_text="heart").wait_for()
    becomes(picture, first)
    widget.locator("input[type=text]").first.fill("unicorn")
    widget.get_by_text("No study has all of that.").wait_for()
    assert not picture.is_visible()


def test_clicking_and_sliding_over_the_words_changes_the_attention(page):
    widget, picture = page.locator(".jp-Cell").nth(2), page.locator(".jp-Cell").nth(2).locator("img.widget-image")
    words = widget.locator(".widget-toggle-button")
    first = pixels(picture)
    words.nth(2).click()
    third = changed(picture, first)
    widget.get_by_role("slider").focus()  # it went with the click: one to the left is the second word
    page.keyboard.press("ArrowLeft")
    changed(picture, third)
    widget.locator(".widget-toggle-button:nth-child(2).mod-active").wait_for()
    words.nth(0).click()
    becomes(picture, first)


def test_beam_width_and_length_penalty_change_the_tree(page):
    widget, picture = page.locator(".jp-Cell").nth(3), page.locator(".jp-Cell").nth(3).locator("img.widget-image")
    sliders = [widget.locator(".widget-hslider", has_text=name) for name in ("Beam width k", "Length penalty")]
    width, penalty = (slider.get_by_role("slider") for slider in sliders)
    three = pixels(picture)
    width.focus()
    page.keyboard.press("ArrowRight")
    changed(picture, three)
    widget.locator("tr").nth(4).wait_for()  # below the heading, a fourth finished report
    four = pixels(picture)
    penalty.focus()
    page.keyboard.press("Home")
    changed(picture, four)  # without a penalty the line of a shorter report wins
    page.keyboard.press("End")
    becomes(picture, four)

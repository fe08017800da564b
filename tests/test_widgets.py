"The widgets' controls, driven from Python, and their pictures beside ones made without them."
import base64
import io
import itertools
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.colors import to_rgb
from PIL import Image

from xraycap.attention import AttentionDecoder
from xraycap.captioner import Report, overlay
from xraycap.mesh import FINDINGS, mesh_findings
from xraycap.phantom import phantom
from xraycap.search import beam_search, beam_tree, greedy_search
from xraycap.text import EOS, Vocab
from xraycap.widgets import (
    _groups, _one_side, _with_side, _without_amount, attention_explorer, attention_figure, beam_explorer, beam_figure,
    phantom_sliders, study_browser, study_figure)

rows = [
    (11, "The heart is large.", "Cardiomegaly.", ["Cardiomegaly/mild"]),
    (12, "Clear lungs.", "", ["normal"]),
    (13, "No effusion. Heart normal.", "", ["Nodule/lung/left"]),
    (14, "A small effusion <b>right</b>.", "", ["Pleural Effusion/right/small", "Cardiomegaly"])]
codes = {name: code for group in _groups.values() for name, code in group.items()}


@pytest.fixture
def studies():
    table = pd.DataFrame(rows, columns=["uid", "findings", "impression", "mesh"])
    frontal = [f"phantom-{uid}" for uid in table.uid]
    return table.assign(frontal=frontal, lateral=[f"{name}-lateral" for name in frontal])


@pytest.fixture(scope="module")
def report():
    words = "the heart is normal in size . no pleural effusion .".split()
    views = tuple(np.random.default_rng(i).integers(0, 256, (224, 224), dtype="uint8") for i in range(2))
    attention = np.random.default_rng(2).dirichlet(np.full(98, .2), len(words))
    return Report(words, -5.0, attention, views, "mine", "phantom", .1)


def views(explorer):
    "The two views in the widget's picture, float (400, 400, 3), read from its PNG."
    picture = np.asarray(Image.open(io.BytesIO(explorer.picture.value)).convert("RGB"), float)
    return picture[24:424, :400], picture[24:424, 410:810]


def assert_shows(explorer, expected, tolerance=2):
    "Are these the `expected` views, enlarged?"
    for seen, view in zip(views(explorer), expected):
        view = np.asarray(Image.fromarray(view).convert("RGB").resize((400, 400), Image.Resampling.BICUBIC), float)
        assert abs(seen - view).mean() < tolerance


def plain(text):
    "HTML's text as it is read."
    return text.replace("&lt;", "<").replace("&gt;", ">")


def test_studies_are_shown_by_the_slider(studies):
    browser = study_browser(studies)
    for place, (uid, findings, impression, mesh) in enumerate(rows, 1):
        browser.controls["study"].value = place
        assert_shows(browser, phantom(uid, mesh)[:2])
        with pytest.raises(AssertionError): assert_shows(browser, phantom(uid + 1, mesh)[:2])
        text = plain(re.sub("<.*?>", "", browser.words.value))
        assert all(part in text for part in (findings, impression, *mesh))


@pytest.mark.parametrize("finding, words, uids", [
    ("any", "", [11, 12, 13, 14]), ("Cardiomegaly", "", [11, 14]), ("normal", "", [12]), ("any", "EFFUSION", [13, 14]),
    ("any", "effusion no", [13]), ("Pleural Effusion", "effusion", [14]), ("any", "13", [13]), ("any", "<b>", [14]),
    ("any", "cardiomegaly mild", [11])])
def test_search(studies, finding, words, uids):
    browser = study_browser(studies)
    browser.controls["study"].value = 4
    browser.controls["finding"].value, browser.controls["find"].value = finding, words
    slider, seen = browser.controls["study"], []
    assert slider.max == len(uids)
    for place in range(1, slider.max + 1):
        slider.value = place
        text = plain(re.sub("</?mark>", "", browser.words.value))
        seen += [uid for uid, findings, *_ in rows if findings.split()[-1] in text]
    assert seen == uids
    marks = set(re.findall("<mark>(.*?)</mark>", browser.words.value))
    assert {plain(o.lower()) for o in marks} == (set() if words.isdigit() else set(words.lower().split()))


def test_a_search_without_a_hit_says_so_and_recovers(studies):
    browser = study_browser(studies)
    before = browser.picture.value
    browser.controls["find"].value = "unicorn"
    assert browser.words.value == "No study has all of that."
    assert browser.picture.layout.display == "none" and browser.controls["study"].disabled
    browser.controls["find"].value = ""
    assert browser.picture.value == before
    assert browser.picture.layout.display is None and not browser.controls["study"].disabled


def test_a_file_that_is_gone_is_a_sentence(studies, tmp_path):
    studies["frontal"] = studies["lateral"] = str(tmp_path/"gone.png")
    browser = study_browser(studies)
    assert "gone.png" in browser.words.value and browser.picture.layout.display == "none"


def test_other_tables_are_refused(studies):
    with pytest.raises(ValueError, match="no column mesh"): study_browser(studies.drop(columns="mesh"))
    with pytest.raises(ValueError, match="no study"): study_browser(studies[:0])


def test_real_files_are_shown_and_not_called_simulated(studies, tmp_path):
    for view in ("frontal", "lateral"): Image.fromarray(getattr(phantom(5), view)).save(tmp_path/f"{view}.png")
    studies["frontal"], studies["lateral"] = str(tmp_path/"frontal.png"), str(tmp_path/"lateral.png")
    assert_shows(study_browser(studies), phantom(5)[:2])
    texts = study_figure(studies.iloc[0], still=False).texts
    assert [text.get_text() for text in texts] == ["study 11, frontal", "lateral"]


def test_dollars_are_no_formula(studies):
    studies["findings"] = "costs $5 and \\frac $6_"
    study_figure(studies.iloc[0], still=True).canvas.draw()


def test_each_search_redraws_once(studies, monkeypatch):
    drawn = []
    monkeypatch.setattr("xraycap.widgets.study_views", lambda study: drawn.append(study.uid) or phantom(1)[:2])
    browser = study_browser(studies)
    for control, value in [("study", 3), ("find", "effusion"), ("study", 2), ("finding", "Cardiomegaly"), ("find", "")]:
        drawn.clear()
        browser.controls[control].value = value
        assert len(drawn) == 1, control


def test_every_finding_has_a_slider_and_a_code_of_its_own():
    assert sorted(codes) == sorted(FINDINGS) and all(mesh_findings([code]) == {name} for name, code in codes.items())
    assert set(codes) <= set(phantom_sliders().controls)


@pytest.mark.parametrize("name", sorted(codes))
def test_amounts_and_sides_matter_where_they_can_be_chosen_and_only_there(name):
    def differ(*qualifiers):
        views = [phantom(7, [f"{codes[name]}{qualifier}"]).frontal for qualifier in qualifiers]
        return any((a != b).any() for a, b in itertools.combinations(views, 2))

    assert differ("", "/mild", "/severe") == (name not in _without_amount)
    if name not in _with_side: return
    centre = {}
    for side in ("right", "left"):
        shown, hidden = phantom(7, [f"{codes[name]}/{side}"]), phantom(7)
        change = abs(shown.frontal.astype(float) - hidden.frontal)
        centre[side] = (change.sum(0) * np.arange(224)).sum() / change.sum()
    if name == "Scoliosis": assert differ("/right", "/left")  # the spine bends both ways, only one more than the other
    else: assert centre["right"] + 10 < centre["left"]  # the patient's right is on the picture's left
    assert (name in _one_side) or differ("/right", "/bilateral") and differ("/left", "/bilateral")


def test_phantom_sliders_show_the_phantom_of_their_codes():
    body = phantom_sliders(7)
    assert_shows(body, phantom(7)[:2])
    body.controls["Pleural Effusion"].value, body.controls["Pleural Effusion side"].value = "severe", "left"
    body.controls["Cardiomegaly"].value = "present"
    mesh = ["Pleural Effusion/left/severe", "Cardiomegaly"]
    assert body.words.value == f"<code>phantom(7, {mesh})</code>"
    assert_shows(body, phantom(7, mesh)[:2])
    body.controls["patient"].value = 8
    assert_shows(body, phantom(8, mesh)[:2])
    body.controls["outline"].value = True
    orange = [(abs(view - [255, 140, 0]).sum(-1) == 0) for view in views(body)]
    for line, mask in zip(orange, phantom(8, ["Cardiomegaly"]).masks["Cardiomegaly"]):
        near = np.asarray(Image.fromarray(mask).resize((400, 400)))
        assert 100 < line.sum() < .1 * near.size and line[near].sum() > 50


def test_a_side_can_be_chosen_where_there_is_a_finding():
    body = phantom_sliders()
    side, before = body.controls["Nodule side"], body.picture.value
    assert side.disabled
    side.value = "left"
    assert body.picture.value == before
    body.controls["Nodule"].value = "present"
    assert not side.disabled and body.picture.value != before


def test_attention_of_a_word_and_of_its_sentence(report):
    explorer, maps = attention_explorer(report), report.attention.reshape(-1, 2, 7, 7)
    def expected(m):
        m = m / max(m.max(), 4 / 98)
        return [(255 * overlay(view, weights)).astype("u1") for view, weights in zip(report.views, m)]

    for word in (0, 5, 10):
        explorer.controls["word"].value = word
        assert_shows(explorer, expected(maps[word]))
    explorer.controls["sentence"].value = True
    assert_shows(explorer, expected(maps[7:11].mean(0)))
    explorer.controls["word"].value = 3
    assert_shows(explorer, expected(maps[:7].mean(0)))


def test_words_can_be_clicked_and_slid(report):
    explorer = attention_explorer(report)
    buttons, slider = explorer.children[0], explorer.controls["word"]
    assert [label for label, _ in buttons.options] == report.words
    buttons.value = 9
    clicked = explorer.picture.value
    assert slider.value == 9
    slider.value = 1
    assert buttons.value == 1 and explorer.picture.value != clicked
    slider.value = 9
    assert explorer.picture.value == clicked


def test_the_attention_picture_says_word_share_and_notice(report):
    texts = [text.get_text().replace("\n", " ") for text in attention_figure(report, 1).texts]
    share = report.attention[1, :49].sum() / report.attention[1].sum()
    titles = [f"frontal: {share:.0%} of the attention", f"lateral: {1 - share:.0%} of the attention"]
    assert texts == [*titles, "the [heart] is normal in size .", report.notice]


def test_a_report_without_attention_is_refused(report):
    blind = Report(report.words, -1., None, report.views, "mine", "phantom", .1)
    with pytest.raises(ValueError, match="no attention"): attention_explorer(blind)
    with pytest.raises(ValueError, match="no attention"): attention_figure(blind)


class Small:
    "As much of a captioner as the beam explorer asks for, with random weights."
    about = dict(images="phantom")

    def __init__(self):
        torch.manual_seed(0)
        self.vocab = Vocab([f"word{chr(97 + i)}" for i in range(26)])
        self.decoder = AttentionDecoder(len(self.vocab), hidden=16, attention=8).eval()
        for p in self.decoder.parameters(): p.data.mul_(1.7)
        self.decoder.output.bias.data[EOS] += 3  # reports of several lengths
        self.features = np.random.default_rng(0).normal(size=(98, 1024)).astype("float32")

    def encode(self, frontal, lateral=None): return None, self.features


@pytest.fixture(scope="module")
def small(): return Small()


def table(explorer):
    "The rows of the finished reports: score, log-probability, length, words."
    cells = [re.findall("<td.*?>(.*?)</td>", row) for row in explorer.words.value.split("<tr>")]
    return [(float(score), float(logp), int(length), words) for score, logp, length, words in filter(None, cells)]


def test_the_beam_explorer_agrees_with_the_searches(small):
    explorer = beam_explorer(small, "frontal.png")
    for k in (1, 2, 4):
        explorer.controls["k"].value = k
        found, = beam_search(small.decoder, small.features[None], k=k)
        score, logp, _, words = table(explorer)[0]
        assert len(table(explorer)) == k and words == small.vocab.decode(found.tokens)
        assert score == pytest.approx(found.score, abs=2e-3) and logp == pytest.approx(found.logp, abs=.06)
    explorer.controls["k"].value = 1
    greedy, = greedy_search(small.decoder, small.features[None])
    assert table(explorer)[0][3] == small.vocab.decode(greedy.tokens)


def test_the_length_penalty_reorders_the_finished_reports(small):
    explorer, orders, pictures = beam_explorer(small, "frontal.png"), set(), set()
    explorer.controls["k"].value = 8
    for penalty in (0, 1, 2):
        explorer.controls["penalty"].value = penalty
        found = table(explorer)
        assert [score for score, *_ in found] == sorted((score for score, *_ in found), reverse=True)
        for score, logp, length, _ in found: assert score == pytest.approx(logp / length**penalty, abs=.06)
        orders.add(tuple(words for *_, words in found))
        pictures.add(explorer.picture.value)
    assert len(orders) > 1 and len(pictures) > 1
    assert len({frozenset(order) for order in orders}) == 1


def test_the_winning_line_in_the_tree_is_the_winning_report(small):
    done, tree = beam_tree(small.decoder, small.features, k=4)
    for penalty in (0, 1, 2):
        best = max(done, key=lambda node: node.logp / node.step**penalty)
        said = small.vocab.decode(best.words).split() + ["END"]
        for first in (1, 4):
            ax, = beam_figure(done, tree, small.vocab, penalty, first).axes
            bold = [text for text in ax.texts if text.get_weight() == "bold"]
            bold = sorted((text.get_position()[0], text.get_text().split("\n")[0]) for text in bold)
            assert [word for _, word in bold] == said[first - 1:first + 8]
            orange, = (lines for lines in ax.collections if tuple(lines.get_colors()[0][:3]) == to_rgb("C1"))
            assert len(orange.get_segments()) == len(bold) - (first == 1)


def test_the_window_of_words_stays_in_the_report(small):
    explorer = beam_explorer(small, "frontal.png")
    for k in (1, 3, 10):
        explorer.controls["k"].value = k
        longest = max(node.step for node in beam_tree(small.decoder, small.features, k)[1])
        assert explorer.controls["first"].max == max(1, longest - 8) >= explorer.controls["first"].value
        explorer.controls["first"].value = explorer.controls["first"].max


def test_where_no_widget_lives_there_is_a_still_picture(studies):
    browser = study_browser(studies)
    data, _ = DisplayFormatter().format(browser)
    assert "application/vnd.jupyter.widget-view+json" in data
    still = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    live = Image.open(io.BytesIO(browser.picture.value))
    assert still.width == live.width and still.height > live.height  # the words are in it, too
    still, live = np.asarray(still.convert("L")), np.asarray(live.convert("L"))
    assert (still[24:len(live)] == live[24:]).all() and (still[len(live):] < 100).any()
    browser.controls["find"].value = "unicorn"
    assert "image/png" not in DisplayFormatter().format(browser)[0]


def test_the_package_does_not_load_what_is_not_asked_for():
    code = ("import sys, xraycap; assert 'ipywidgets' not in sys.modules and 'matplotlib' not in sys.modules; "
            "xraycap.phantom_sliders, xraycap.study_browser, xraycap.attention_explorer, xraycap.beam_explorer; "
            "assert 'ipywidgets' in sys.modules and 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)

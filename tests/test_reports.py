"""The table of studies against counts made by other means, and the views against clues that had no say."""
import re
import string
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from xraycap.files import cache_dir, find_archive
from xraycap.reports import load_reports
from xraycap.studies import chen_split, load_studies, split_studies, studies_table, two_images
from xraycap.views import CLUES, decide_views, image_views, view_clues, view_table

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def raw():
    "The XML texts by study number, as bytes that no XML parser has touched"
    with tarfile.open(find_archive()) as tar:
        texts = [tar.extractfile(o).read().decode() for o in tar if o.name.endswith(".xml")]
    return {int(re.search(r'<uId id="CXR(\d+)"', o)[1]): o for o in texts}


@pytest.fixture(scope="module")
def reports(): return load_reports()


def test_a_table_that_is_written_into_is_nobody_elses():
    table = view_table()
    table["view"] = "frontal"
    assert set(view_table()["view"]) == {"frontal", "lateral"}


def test_finding_the_archive_does_not_import_torch():
    code = ("import sys; from xraycap.reports import load_reports; load_reports();"
            "print([o for o in ('torch', 'torchxrayvision', 'fastai') if o in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_facts(reports):
    n = reports.images.map(len)
    both = (n > 0) & (reports.findings != "")
    assert len(reports) == 3955 and n.sum() == 7470
    assert Counter(n) == {0: 104, 1: 446, 2: 3208, 3: 181, 4: 15, 5: 1}
    assert (reports.findings == "").sum() == 530
    assert both.sum() == 3337 and n[both].sum() == 6473
    assert sum(o == ["normal"] for o in reports.mesh) == 1391
    assert reports.uid.is_monotonic_increasing and reports.uid.is_unique


def test_every_report_says_what_the_xml_says(raw, reports):
    def unescape(text): return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    for r in reports.itertuples():
        xml = raw[r.uid]
        assert r.images == re.findall(r'<parentImage id="([^"]+)"', xml)
        assert r.mesh == [unescape(o).strip() for o in re.findall(r"<major>([^<]+)</major>", xml)]
        for part in ("findings", "impression", "indication", "comparison"):
            said = re.search(rf'<AbstractText Label="{part.upper()}">([^<]*)</AbstractText>', xml)
            assert getattr(r, part) == (unescape(said[1]) if said else "")


def test_tables_are_independent_copies(reports):
    reports.images.iloc[0].append("not an image")
    assert load_reports().images.iloc[0] == ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"]
    reports.images.iloc[0].pop()


def test_own_archive_and_own_folder(tmp_path, raw):
    for uid in (7, 1000): (tmp_path / f"{uid}.xml").write_text(raw[uid])
    folder = load_reports(tmp_path)
    assert folder.uid.tolist() == [7, 1000]
    with tarfile.open(tmp_path / "own.tgz", "w:gz") as tar:
        for uid in (1000, 7): tar.add(tmp_path / f"{uid}.xml")
    pd.testing.assert_frame_equal(load_reports(str(tmp_path / "own.tgz")), folder)


NESTED = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 9))  # 10**8 letters in the end
BOMB = f'<!DOCTYPE a [<!ENTITY a0 "a">{NESTED}]><a>&a8;</a>'
OUTSIDE = ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
           '<eCitation><uId id="CXR1"/><AbstractText Label="FINDINGS">&x;</AbstractText></eCitation>')


@pytest.mark.parametrize("content", [
    "<a>", "", "no xml", BOMB, OUTSIDE, "<a/>", "<a><uId/></a>", '<a><uId id="CXRa"/></a>'])
def test_bad_xml_is_named_in_one_sentence(tmp_path, content):
    (tmp_path / "odd.xml").write_text(content)
    with pytest.raises(ValueError, match="odd.xml") as e: load_reports(tmp_path)
    assert type(e.value) is ValueError and "\n" not in str(e.value)


def test_a_folder_is_read_anew(tmp_path, raw):
    (tmp_path / "7.xml").write_text(raw[7])
    assert load_reports(tmp_path).uid.tolist() == [7]
    (tmp_path / "8.xml").write_text(raw[8])
    assert load_reports(tmp_path).uid.tolist() == [7, 8]


def test_bad_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"): load_reports(tmp_path / "nowhere.tgz")
    with pytest.raises(ValueError, match="no XML report"): load_reports(tmp_path)
    (tmp_path / "x.tgz").write_text("hello")
    with pytest.raises(ValueError, match="cannot be read as a tar"): load_reports(tmp_path / "x.tgz")
    (tmp_path / "cut.tgz").write_bytes(find_archive().read_bytes()[:200_000])
    with pytest.raises(ValueError, match="cannot be read as a tar"): load_reports(tmp_path / "cut.tgz")


# --- views

def test_every_image_has_a_view_and_a_rule(reports):
    table = view_table()
    assert set(table.index) == {o for images in reports.images for o in images}
    assert set(table["view"]) == {"frontal", "lateral"}
    assert set(table.rule) <= {*CLUES, "partner"} and table.rule.value_counts().sum() == 7470


def test_views_agree_with_clues_that_had_no_say():
    "Hide a clue that is nearly a label, and compare"
    clues = view_clues()
    labels = {"derived": clues.derived.map({"L": "lateral", "PA": "frontal"}),
              "position": clues.position.map({"LL": "lateral", "RL": "lateral", "LATERAL": "lateral"}),
              "orientation": clues.orientation.map({"['A', 'F']": "lateral", "['P', 'F']": "lateral"})}
    for name, label in labels.items():
        view = decide_views(clues.assign(**{name: np.nan}))["view"]
        assert (view == label)[label.notna()].mean() > .98, name


def test_the_marks_pa_of_second_images_are_not_believed():
    table = view_table()
    second = table[(table.groupby("uid").cumcount() == 1) & (table.position == "PA")]
    assert len(second) > 1000 and (second["view"] == "lateral").mean() > .8


def test_two_images_are_hardly_ever_of_one_kind(reports):
    views = image_views(reports)
    assert all(len(v) == len(i) for v, i in zip(views, reports.images))
    two = views[views.map(len) == 2]
    assert two.map(lambda o: len(set(o)) == 2).mean() > .99


def test_views_of_radiographs_that_people_looked_at():
    views = view_table()["view"]
    seen = ["CXR1000_IM-0003-1001", "CXR1000_IM-0003-2001", "CXR1000_IM-0003-3001", "CXR25_IM-1024-2001"]
    assert views[seen].tolist() == ["frontal", "lateral", "frontal", "frontal"]


def test_unknown_images_go_by_their_order():
    unknown = pd.DataFrame(dict(images=[["a", "b"], [], ["c"]]))
    assert image_views(unknown).tolist() == [["frontal", "lateral"], [], ["frontal"]]


@pytest.mark.parametrize("views,want", [("f", "aa"), ("l", "aa"), ("fl", "ab"), ("lf", "ba"), ("ff", "ab"),
                                        ("ll", "ab"), ("ffl", "ac"), ("lff", "ba"), ("fll", "ab"), ("lll", "ab"),
                                        ("fflf", "ac")])
def test_two_images(views, want):
    names = ["frontal" if o == "f" else "lateral" for o in views]
    assert two_images(list("abcd")[:len(views)], names) == tuple(want)


# --- splits

def test_chen_split_is_the_published_one():
    split = chen_split()
    assert Counter(split.values()) == {"train": 2069, "val": 296, "test": 590}
    studies = load_studies().set_index("uid")
    assert set(split) <= set(studies.index)
    assert (studies.loc[list(split)].split == list(split.values())).all()


@pytest.mark.skipif(not (SHARED / "chen_split_ids.json").exists(), reason="the published ids are not here")
def test_chen_split_id_by_id():
    import json
    published = json.loads((SHARED / "chen_split_ids.json").read_text())
    assert chen_split() == {int(o.removeprefix("CXR")): part for part, ids in published.items() for o in ids}


@pytest.mark.parametrize("split", ["case-study", "by-text"])
def test_random_splits(split):
    studies = load_studies(split=split)
    assert Counter(studies.split) == {"train": 2758, "val": 290, "test": 289}
    assert (studies.split == load_studies(split=split).split).all()
    assert (studies.split != split_studies(studies, split, seed=1)).any()
    spaces = str.maketrans(dict.fromkeys(string.punctuation, " "))
    words = studies.findings.str.lower().str.translate(spaces).str.split().str.join(" ")
    kept = studies.groupby(words).split.nunique()
    assert (kept.max() == 1) == (split == "by-text")


def test_unknown_split():
    with pytest.raises(ValueError, match="choose one of"): load_studies(split="random")


# --- studies

def test_load_studies_of_simulated_images():
    studies = load_studies()
    assert len(studies) == 3337 and studies.attrs["images"] == "phantom" and studies.index.tolist() == list(range(3337))
    assert (studies.frontal == "phantom-" + studies.uid.astype(str) + "-frontal").all()
    assert (studies.lateral == "phantom-" + studies.uid.astype(str) + "-lateral").all()


def test_load_studies_of_a_folder(tmp_path):
    for o in ("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001", "CXR2_IM-0652-2001", "other"):
        Image.new("L", (40, 40)).save(tmp_path / f"{o}.png")
    studies = load_studies(tmp_path)
    assert studies.uid.tolist() == [1, 2] and studies.attrs["images"] == "openi"
    assert {studies.frontal[0], studies.lateral[0]} == {str(tmp_path / f"CXR1_1_IM-0001-{o}.png") for o in (3001, 4001)}
    assert studies.frontal[1] == studies.lateral[1] == str(tmp_path / "CXR2_IM-0652-2001.png")


def test_load_studies_without_images(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="xraycap download images"): load_studies(tmp_path)
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path / "home"))
    with pytest.raises(FileNotFoundError, match="xraycap download images"): load_studies("openi")
    Image.new("L", (40, 40)).save(tmp_path / "cat.png")
    with pytest.raises(FileNotFoundError, match="named as in the collection"): load_studies(tmp_path)


@pytest.mark.skipif(not (SHARED / "openi").exists(), reason="no real radiographs here")
def test_load_studies_of_real_radiographs():
    studies = load_studies(SHARED / "openi").set_index("uid")
    assert studies.index.tolist() == [25, 1000]
    assert (studies.frontal[1000][-8:], studies.lateral[1000][-8:]) == ("1001.png", "2001.png")
    assert studies.frontal[25] == studies.lateral[25]


def test_studies_table_survives_csv(tmp_path, reports):
    studies_table(clean=str.upper).to_csv(tmp_path / "studies.csv", index=False)
    table = pd.read_csv(tmp_path / "studies.csv", keep_default_na=False)
    names = "uid images views frontal lateral findings impression findings_clean mesh split"
    assert table.columns.tolist() == names.split()
    assert len(table) == 3955
    assert (table.images.str.split(";").map(lambda o: o if o != [""] else []) == reports.images).all()
    assert (table.findings == reports.findings).all() and (table.findings_clean == reports.findings.str.upper()).all()
    for r in table.itertuples():
        images, views = r.images.split(";"), r.views.split(";")
        assert len(images) == len(views)
        if not r.images: assert r.frontal == r.lateral == r.views == r.split == ""
        elif len(images) == 1: assert r.frontal == r.lateral == images[0]
        elif len(set(views)) == 2:
            assert (r.frontal, r.lateral) == (images[views.index("frontal")], images[views.index("lateral")])
    assert Counter(table.split) == {"": 1000, "train": 2069, "val": 296, "test": 590}


def test_cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path / "a" / "b"))
    assert cache_dir() == tmp_path / "a" / "b" and cache_dir().is_dir()

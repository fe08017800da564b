"""Studies of one's own: a CSV or R2Gen's annotation.json becomes the collection's table, or one sentence says why not.
(test_tables has the many forms of such a file, test_labels labels in the place of reports.)"""
import json
import os

import numpy as np
import pandas as pd
import pytest
from conftest import two_greys
from PIL import Image
from typer.testing import CliRunner

from xraycap.cli import app
from xraycap.own_data import patient_split
from xraycap.phantom import study_views
from xraycap.studies import load_studies


def clinic(tmp_path, text, images=("a.png", "b.png", "deep/c.jpg")):
    "A folder `clinic` with data.csv and some images, each of its own grey"
    for i, o in enumerate(images): two_greys(tmp_path / "clinic" / o, 10 * (i + 1))
    table = tmp_path / "clinic" / "data.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return table


def archive(folder, parts):
    "annotation.json in `folder`, with every image that it names"
    for o in (o for studies in parts.values() for o in studies):
        for i, image in enumerate(o["image_path"]): two_greys(folder / "images" / image, 50 + i)
    path = folder / "annotation.json"
    path.write_text(json.dumps(parts))
    return path


def grey(study): return [int(view.mean()) for view in study_views(study)]


# --- CSV

def test_csv(tmp_path):
    text = 'frontal,lateral,findings\na.png,b.png,Clear.\ndeep/c.jpg,,"Large heart, no effusion."\n'
    studies = load_studies(clinic(tmp_path, text))
    assert studies.findings.tolist() == ["Clear.", "Large heart, no effusion."]
    assert [grey(o) for _, o in studies.iterrows()] == [[10, 20], [30, 30]]
    assert studies.views.tolist() == [["frontal", "lateral"], ["frontal"]]
    assert studies.attrs == {"images": "clinic/data.csv", "split": "70/10/20"}


def test_the_table_is_that_of_the_collection(tmp_path):
    own, collection = load_studies(clinic(tmp_path, "frontal,lateral,findings\na.png,b.png,Clear.\n")), load_studies()
    assert set(own.columns) == set(collection.columns) and own.uid.dtype == collection.uid.dtype == np.int64
    for name in own.columns: assert type(own[name][0]) is type(collection[name][0]), name
    assert own.mesh[0] == []


@pytest.mark.parametrize("text", [
    "\ufefffrontal,lateral,findings\na.png,b.png,Clear.\n", "frontal,lateral,findings\r\na.png,b.png,Clear.\r\n",
    "findings, frontal, lateral, room\nClear., a.png, b.png, 7\n", 'frontal,lateral,findings\n\na.png,b.png,"Clear."',
    "frontal,lateral,findings,split,uid,patient\na.png,b.png,Clear.,,,\n"])
def test_csv_as_different_programs_write_it(tmp_path, text):
    studies = load_studies(clinic(tmp_path, text))
    assert studies.findings.tolist() == ["Clear."] and grey(studies.loc[0]) == [10, 20]


def test_no_lateral_column(tmp_path):
    assert grey(load_studies(clinic(tmp_path, "frontal,findings\na.png,Clear.\n")).loc[0]) == [10, 10]


def test_a_lateral_image_alone_is_left_out_and_counted(tmp_path, capsys):
    studies = load_studies(clinic(tmp_path, "frontal,lateral,findings\n,b.png,A.\na.png,,B.\n"))
    assert studies.findings.tolist() == ["B."]
    assert capsys.readouterr().out == ("clinic/data.csv: 1 of 2 studies have findings and an image here; 2 of 2 images "
                                       "are here; left out for want of a frontal image: 1.\n")
    with pytest.raises(FileNotFoundError, match="no study with findings and an image; left out for want"):
        load_studies(clinic(tmp_path, "frontal,lateral,findings\n,b.png,A.\n"))
    views = load_studies(clinic(tmp_path, "image_path,findings,view\na.png,A.,Lateral\nb.png,B.,pa\n"))
    assert views.findings.tolist() == ["B."] and views["view"].tolist() == ["PA"]


def test_own_numbers_and_own_split(tmp_path):
    text = "uid,frontal,lateral,findings,split\n7,a.png,,A.,test\n5,b.png,,B.,train\n6,deep/c.jpg,,C.,\n"
    studies = load_studies(clinic(tmp_path, text))
    assert studies.uid.tolist() == [7, 5, 6]
    assert studies.split.tolist() == ["test", "train", ""] and studies.attrs["split"] == "own"


def test_numbers_stay_when_rows_move(tmp_path):
    rows = ["a.png,b.png,A.", "b.png,,B.", "deep/c.jpg,,C."]
    def numbers(rows):
        studies = load_studies(clinic(tmp_path, "\n".join(["frontal,lateral,findings", *rows])))
        return dict(zip(studies.findings, studies.uid))
    first = numbers(rows[:2])
    assert len(set(numbers(rows).values())) == 3 and numbers(rows[::-1]).items() >= first.items()


def test_absolute_paths(tmp_path):
    elsewhere = tmp_path / "elsewhere" / "x.png"
    two_greys(elsewhere, 99)
    studies = load_studies(clinic(tmp_path, f"frontal,lateral,findings\n{elsewhere},,Clear.\n"))
    assert studies.frontal[0] == str(elsewhere) and grey(studies.loc[0]) == [99, 99]


# --- the split

@pytest.mark.parametrize("n,sizes", [(3, (1, 1, 1)), (12, (9, 1, 2)), (1000, (700, 100, 200))])
def test_the_split_has_the_sizes_it_says(n, sizes):
    parts = patient_split(list(map(str, range(n))))
    assert tuple(parts.count(o) for o in ("train", "val", "test")) == sizes
    assert parts == patient_split(list(map(str, range(n))))


def test_patients_stay_together():
    patients = [f"p{i}" for i in np.random.default_rng(0).integers(0, 60, 300)]
    parts = pd.Series(patient_split(patients))
    assert (parts.groupby(patients).nunique() == 1).all() and set(parts) == {"train", "val", "test"}
    order = np.random.default_rng(1).permutation(300)
    assert patient_split([patients[i] for i in order]) == parts[order].tolist()  # the order of the rows does not matter
    assert "".join(parts) != "".join(sorted(parts))  # nor is it the split


# --- annotation.json

IU = {"train": [{"id": "CXR2384_IM-0942", "report": "The heart is large.", "split": "train",
                 "image_path": ["CXR2384_IM-0942/0.png", "CXR2384_IM-0942/1.png"]}],
      "val": [{"id": "CXR1", "report": "Clear.", "image_path": ["CXR1/0.png", "CXR1/1.png"], "split": "val"}],
      "test": [{"id": "CXR2", "report": "No effusion.", "image_path": ["CXR2/0.png", "CXR2/1.png"], "split": "test"}]}
MIMIC = {part: [{"id": f"02aa804e-{part}", "study_id": 50414267 + i, "subject_id": 10000032, "report": "Clear lungs.",
                 "image_path": [f"p10/p10000032/s{50414267 + i}/02aa804e-{part}.jpg"], "split": part}]
         for i, part in enumerate(("train", "val", "test"))}


def test_annotation_of_iu(tmp_path):
    studies = load_studies(archive(tmp_path / "iu_xray", IU))
    assert studies.split.tolist() == ["train", "val", "test"] and studies.uid.is_unique
    assert studies.findings.tolist() == ["The heart is large.", "Clear.", "No effusion."]
    assert all(grey(o) == [50, 51] for _, o in studies.iterrows())
    assert studies.attrs == {"images": "iu_xray/annotation.json", "split": "own"}


def test_annotation_of_mimic(tmp_path):
    studies = load_studies(archive(tmp_path / "mimic_cxr", MIMIC))
    assert studies.split.tolist() == ["train", "val", "test"]
    assert all(grey(o) == [50, 50] for _, o in studies.iterrows())
    assert studies.frontal[1] == str(tmp_path / "mimic_cxr/images/p10/p10000032/s50414268/02aa804e-val.jpg")
    assert studies.attrs["images"] == "mimic_cxr/annotation.json"


def test_one_path_as_text_and_more_than_two(tmp_path):
    parts = {"train": [{"report": "A.", "image_path": ["0.png", "1.png", "2.png"]}], "val": [], "test": []}
    path = archive(tmp_path, parts)
    assert grey(load_studies(path).loc[0]) == [50, 51]
    path.write_text(json.dumps({**parts, "train": [{"report": "A.", "image_path": "2.png"}]}))
    assert grey(load_studies(path).loc[0]) == [52, 52]


# --- only some of the images

def test_missing_images_are_said(tmp_path, capsys):
    rows = ["a.png,b.png,A.", "b.png,gone.png,B.", "lost.png,deep/c.jpg,C.", "no.png,,D.", "deep/c.jpg,a.png,  "]
    text = "\n".join(["frontal,lateral,findings", *rows])
    studies = load_studies(clinic(tmp_path, text))
    assert [grey(o) for _, o in studies.iterrows()] == [[10, 20], [20, 20]]  # a lateral image is no frontal one
    said = capsys.readouterr().out
    assert said == ("clinic/data.csv: 2 of 5 studies have findings and an image here; 6 of 9 images are here; "
                    "the first that is missing is gone.png.\n")


def test_nothing_is_said_when_all_is_there(tmp_path, capsys):
    load_studies(clinic(tmp_path, "frontal,lateral,findings\na.png,b.png,A.\n"))
    load_studies()
    assert capsys.readouterr().out == ""


def test_a_partial_collection(tmp_path, capsys):
    Image.new("L", (40, 40)).save(tmp_path / "CXR1_1_IM-0001-4001.png")
    assert load_studies(tmp_path).uid.tolist() == [1]
    said = capsys.readouterr().out
    assert "openi: 1 of 3,337 studies have findings and an image here; 1 of 6,473 images are here" in said


# --- what is wrong with a file, in one sentence

HEAD = "frontal,lateral,findings\n"

@pytest.mark.parametrize("text,says", [
    ("", "must begin with a line that names its columns"), ("a,b,c\n1,2,3\n", "must begin with a line"),
    ("frontal;Befund\na.png;Clear.\n", "with commas between"),
    (HEAD, "names no study"), (HEAD + "a.png,,Clear, dry.\n", "line 2: there are not as many fields"),
    (HEAD + "a.png,,A.\nb.png\n", "line 3: there are not as many"),
    (HEAD + 'a.png,,"A."B\n', "line 2: this is not CSV"),
    (HEAD + 'a.png,,"never closed\n', "line 2: this is not CSV"), (HEAD.encode() + b"a.png,,\xff\xfe\n", "UTF-8"),
    (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00\xe5\xb7", "UTF-8"),
    (HEAD + "a.png,,A.\na.png,,B.\n", "line 3: .* line 2 already"),
    ("uid,frontal,findings\n1,a.png,A.\n1,b.png,B.\n", "line 3: the uid stands in line 2 already"),
    ("uid,frontal,findings\n1,a.png,A.\n,b.png,B.\n", "line 3: the uid '' is not a whole number"),
    ("uid,frontal,findings\ns1,a.png,A.\ns1,b.png,B.\n", "line 3: the uid stands in line 2 already"),
    ("frontal,findings,Findings\na.png,A.,B.\n", "names the column findings twice"),
    ("frontal;findings\na.png;A.;B.\n", "line 2: there are not as many .* text that has semicolons"),
    ("frontal,findings,split\na.png,A.,train\nb.png,B.,exam\n",
     "line 3: the split 'exam' is none of train, val and test"),
    ("frontal,findings\nx.png,A.\n", "line 2 names x.png, and such paths count from the folder"),
    ("frontal,findings\n,A.\n", "line 2 names none"),
    (HEAD + f"{'The heart is large. ' * 99},,a.png\n", "count from the folder"),
    (HEAD + "a.png,, \n", "no study with findings")])
def test_a_bad_csv(tmp_path, text, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says) as e: load_studies(clinic(tmp_path, text))
    assert "data.csv" in str(e.value)


@pytest.mark.parametrize("content,says", [
    ("{", "not sound JSON"), ("[" * 100_000, "not sound JSON"),
    ("[" * 100_000 + "]" * 100_000, "not sound JSON"), (b"\xff\xfe\x00", "not sound JSON"),
    ("[]", "three lists, named train, val and test"),
    ('{"images": [], "annotations": []}', "three lists"), ('{"train": [], "val": [], "test": []}', "names no study"),
    ('{"train": [{"report": "A."}], "val": [], "test": []}', r"train\[0\]: a study needs"),
    ('{"train": [], "val": [], "test": [{"report": "A.", "image_path": ["0.png"]}, '
     '{"report": 3, "image_path": ["1.png"]}]}', r"test\[1\]"),
    ('{"train": ["CXR1"], "val": [], "test": []}', r"train\[0\]"),
    ('{"train": [{"report": "A.", "image_path": []}], "val": [], "test": []}', r"train\[0\]"),
    ('{"train": [{"report": "A.", "image_path": ["0.png"]}], "val": [], '
     '"test": [{"report": "A.", "image_path": ["0.png"]}]}',
     r"test\[0\]: the study with the same images stands in train\[0\] already"),
    ('{"train": [{"report": "A.", "image_path": ["0.png"]}], "val": [], "test": []}',
     r"none of the images is there; train\[0\] names 0.png")])
def test_a_bad_annotation(tmp_path, content, says):
    path = tmp_path / "annotation.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((ValueError, FileNotFoundError), match=says) as e: load_studies(path)
    assert "annotation.json" in str(e.value)


def test_no_such_table(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*x.csv"): load_studies(tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError, match="no file .*x.json"): load_studies(tmp_path / "x.json")
    os.mkdir(tmp_path / "y.csv")
    with pytest.raises(FileNotFoundError, match="no file .*y.csv"): load_studies(tmp_path / "y.csv")
    table = clinic(tmp_path, "frontal,findings\na.png,A.\n")
    with pytest.raises(ValueError, match="no split named"): load_studies(table, "random")
    two_greys(tmp_path / "cats" / "tom.png", 1)
    with pytest.raises(FileNotFoundError, match="list images of your own in a CSV"): load_studies(tmp_path / "cats")


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_the_command_says_it_in_one_line(tmp_path, command):
    table = clinic(tmp_path, HEAD + 'a.png,,"one\ntwo"\nb.png\n')
    out = ["--out", str(tmp_path / "model")] if command == "train" else []
    result = CliRunner().invoke(app, [command, "--images", str(table), *out])
    assert result.exit_code == 2 and result.stdout == "" and not (tmp_path / "model").exists()
    assert len(result.stderr.strip().splitlines()) == 1 and "data.csv, line 4" in result.stderr

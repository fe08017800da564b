"Tables as people have them: Excel, pandas, other projects. Each is read as the same table in our own form is."
import json

import pytest
from PIL import Image

from xraycap.studies import load_studies
from xraycap.tables import report_parts


@pytest.fixture
def clinic(tmp_path):
    "Writes a table beside four images -> its path"
    for folder in (tmp_path / "img", tmp_path / "images" / "img"):
        folder.mkdir(parents=True)
        for name in ("a", "b", "c", "d"): Image.new("L", (40, 50)).save(folder / f"{name}.png")

    def write(text, name="data.csv", encoding="utf-8"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        return tmp_path / name
    return write


def same(studies, expected):
    columns = ["uid", "images", "findings", "mesh", "views", "split", "frontal", "lateral"]
    assert studies[columns].to_dict() == expected[columns].to_dict()


PLAIN = "frontal,lateral,findings,split\nimg/a.png,img/b.png,Clear.,train\nimg/c.png,,Large heart.,test\n"

@pytest.mark.parametrize("text", [
    PLAIN.replace(",", ";"), PLAIN.replace(",", "\t"), "\ufeff" + PLAIN.replace(",", ";"),
    PLAIN.replace("frontal,lateral,findings,split", "Frontal,LATERAL,Findings,Split"),
    PLAIN.replace("frontal", "image_path").replace("findings", "Report"), PLAIN.replace("frontal", "File Name"),
    PLAIN.replace("img/", "img\\"), PLAIN.replace(",,", ",nan,"), PLAIN.replace(",,", ",None,"),
    PLAIN.replace("train", "Training").replace("test", "TEST"),
    PLAIN.replace("split\n", "split,age,age,\n").replace("train\n", "train,61,61,\n").replace("test\n", "test,9,9,\n"),
    'image_path,findings,split\n"img/a.png,img/b.png",Clear.,train\nimg/c.png,Large heart.,test\n',
    "image_path;findings;split\n['img/a.png', 'img/b.png'];Clear.;train\nimg/c.png;Large heart.;test\n",
    PLAIN.replace("Clear.", '"EXAM: Chest.\n FINDINGS:\n Clear.\n\nIMPRESSION: Normal."')])
def test_other_ways_to_write_the_same_table(clinic, text):
    expected = load_studies(clinic(PLAIN))
    same(load_studies(clinic(text)), expected)
    same(load_studies(clinic(text, encoding="utf-16")), expected)
    same(load_studies(clinic(text, "data.TSV")), expected)


@pytest.mark.parametrize("word, part", [
    ("validate", "val"), ("Valid", "val"), ("validation", "val"), ("DEV", "val"), ("val", "val"), ("Train", "train"),
    ("training", "train"), ("testing", "test")])
def test_parts_of_a_split(clinic, word, part):
    assert load_studies(clinic(f"frontal,findings,split\nimg/a.png,A.,{word}\n")).split.tolist() == [part]


@pytest.mark.parametrize("nothing", ["NaN", "nan", "None", "null", "<NA>", "", " "])
def test_no_findings_are_none(clinic, capsys, nothing):
    text = f"frontal,lateral,findings\nimg/a.png,{nothing},A.\nimg/b.png,,{nothing}\n"
    studies = load_studies(clinic(text))
    assert studies.findings.tolist() == ["A."] and studies.lateral[0] == studies.frontal[0]
    assert "1 of 2 studies have findings" in capsys.readouterr().out


def test_ids_that_are_text(clinic):
    rows = ["img/a.png,A.,s50414267", "img/b.png,B.,1.2.840.113", "img/c.png,C.,7.0", "img/d.png,D.,8"]
    for column in ("uid", "study_id", "id", "dicom_id"):
        studies = load_studies(clinic("\n".join([f"frontal,findings,{column}", *rows])))
        assert studies.uid.dtype == "int64" and studies.uid.is_unique and studies.uid.tolist()[2:] == [7, 8]
        assert studies.study.tolist() == ["s50414267", "1.2.840.113", "7.0", "8"]
    turned = load_studies(clinic("\n".join(["frontal,findings,id", *rows[1::-1]])))
    assert turned.uid.tolist() == studies.uid.tolist()[1::-1]
    assert "study" not in load_studies(clinic(PLAIN))


def test_the_column_that_is_meant(clinic):
    "Where several columns might be it, our own name comes first, and the others are not read."
    text = "path,frontal,report,findings,id,uid\nx.png,img/a.png,Long.,Short.,z,5\n"
    studies = load_studies(clinic(text))
    assert (studies.images[0], studies.findings[0], studies.uid[0]) == (["img/a.png"], "Short.", 5)


def test_nih_own_table(clinic):
    "The header of NIH's Data_Entry_2017.csv, with its empty column at the end"
    text = ("Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
            "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
            "img/a.png,Cardiomegaly|Emphysema,0,1,58,M,PA,2682,2749,0.143,0.143,\n")
    studies = load_studies(clinic(text))
    assert studies.mesh[0] == ["Cardiomegaly", "Emphysema"]
    assert (studies.patient[0], studies["view"][0]) == ("1", "PA")


@pytest.mark.parametrize("text, parts", [
    ("The lungs are clear.", {"findings": "The lungs are clear."}),
    ("FINAL REPORT\n EXAMINATION: CHEST (PA AND LAT)\n\n INDICATION: ___ year old\n with cough\n\n FINDINGS:\n"
     " Clear.\n No effusion.\n\n IMPRESSION: No acute process.",
     {"indication": "___ year old with cough", "findings": "Clear. No effusion.", "impression": "No acute process."}),
    ("Findings: Large heart. Impression: Cardiomegaly.", {"findings": "Large heart.", "impression": "Cardiomegaly."}),
    ("COMPARISON: None. FINDINGS AND IMPRESSION: Clear.", {"comparison": "None.", "findings": "Clear."}),
    ("FINAL REPORT\nClear lungs.\nIMPRESSION: Normal.", {"findings": "Clear lungs.", "impression": "Normal."}),
    ("REASON FOR EXAM: cough. IMPRESSION: Normal.", {"findings": "", "indication": "cough.", "impression": "Normal."}),
    ("No findings: the lungs are clear.", {"findings": "No findings: the lungs are clear."}),
    ("Comparison: none.\nClear.", {"findings": "Comparison: none.\nClear."})])
def test_whole_reports(text, parts): assert report_parts(text) == parts


def test_parts_of_a_report_are_columns_of_ours(clinic, tmp_path):
    whole = '"INDICATION: Cough. FINDINGS: Clear. IMPRESSION: Normal."'
    studies = load_studies(clinic(f"frontal,findings,impression\nimg/a.png,{whole},\nimg/b.png,{whole},Own.\n"))
    assert studies.findings.tolist() == ["Clear."] * 2 and studies.impression.tolist() == ["Normal.", "Own."]
    assert studies.indication.tolist() == ["Cough."] * 2
    parts = {"train": [{"report": json.loads(whole), "image_path": ["img/a.png"]}], "val": [], "test": []}
    studies = load_studies(clinic(json.dumps(parts), "annotation.json"))
    assert (studies.findings[0], studies.impression[0]) == ("Clear.", "Normal.")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_annotation_as_windows_saves_it(clinic, encoding):
    parts = {"train": [{"report": "Größe: normal.", "image_path": ["img\\a.png"]}], "val": [], "test": []}
    studies = load_studies(clinic(json.dumps(parts, ensure_ascii=False), "annotation.json", encoding))
    assert studies.findings.tolist() == ["Größe: normal."] and studies.images[0] == ["img/a.png"]

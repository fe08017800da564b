"The three copies of the Indiana images give the same studies."
import json
import shutil

import pytest
from conftest import two_greys
from PIL import Image

from xraycap.phantom import study_views
from xraycap.studies import load_studies

STUDIES = {  # number: its images as the archive names them, in the report's order
    1: ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"], 1000: ["CXR1000_IM-0003-1001", "CXR1000_IM-0003-2001"],
    37: ["CXR37_IM-1847-0001-0001", "CXR37_IM-1847-0001-0002"], 25: ["CXR25_IM-1024-2001"]}


@pytest.fixture
def copies(tmp_path):
    "The same pictures, each of its own grey, in three folders"
    truth = load_studies().set_index("uid")
    reports = ["uid,MeSH,Problems,image,indication,comparison,findings,impression"]
    projections = ["uid,filename,projection"]
    parts = {"train": [], "val": [], "test": []}
    for uid, images in STUDIES.items():
        study, folder = truth.loc[uid], images[0].rpartition("-")[0]
        for i, image in enumerate(images):
            grey, kaggle = 20 + (uid + 90 * i) % 200, image.removeprefix("CXR1_" if uid == 1 else "CXR") + ".dcm.png"
            two_greys(tmp_path / "archive" / f"{image}.png", grey)
            two_greys(tmp_path / "kaggle/images/images_normalized" / kaggle, grey)
            two_greys(tmp_path / "r2gen/images" / folder / f"{i}.png", grey)
            projections.append(f"{uid},{kaggle},{study.views[i].title()}")
        reports.append(f'{uid},{";".join(study.mesh)},x,x,x,x,"{study.findings}",x')
        if study.split: parts[study.split].append({
            "id": folder, "report": study.findings, "split": study.split,
            "image_path": [f"{folder}/{i}.png" for i, _ in enumerate(images)]})
    (tmp_path / "kaggle/indiana_reports.csv").write_bytes("\r\n".join(reports).encode())
    (tmp_path / "kaggle/indiana_projections.csv").write_text("\n".join(projections))
    (tmp_path / "r2gen/annotation.json").write_text(json.dumps(parts))
    return tmp_path


@pytest.mark.parametrize("split", ["chen", "by-text"])
def test_three_copies_are_the_same(copies, split):
    def read(path):
        studies = load_studies(copies / path, split)
        assert studies.attrs == {"images": "openi", "split": split}
        greys = [[int(view.mean()) for view in study_views(study)] for study in studies.itertuples()]
        return studies.drop(columns=["frontal", "lateral"]).to_dict(), greys
    expected = read("archive")
    assert list(expected[0]["uid"].values()) == [1, 25, 37, 1000]
    assert expected[1] == [[111, 21], [45, 45], [147, 57], [20, 110]]  # studies 1 and 37 have the lateral image first
    for path in ("kaggle", "kaggle/images", "kaggle/images/images_normalized", "kaggle/indiana_reports.csv",
                 "kaggle/indiana_projections.csv", "r2gen", "r2gen/images", "r2gen/annotation.json"):
        assert read(path) == expected, path


def test_capital_endings_and_names_without_dcm(copies):
    (copies / "few").mkdir()
    Image.new("L", (40, 40), 7).save(copies / "few" / "25_IM-1024-2001.PNG")
    assert load_studies(copies / "few").uid.tolist() == [25]


def test_other_peoples_annotation_is_their_own(copies):
    "One study with another name, and it is a file like R2Gen's and not R2Gen's."
    path = copies / "r2gen/annotation.json"
    parts = json.loads(path.read_text())
    parts["train"].append({"id": "CXR-of-mine", "report": "Mine.", "image_path": ["CXR25_IM-1024/0.png"]})
    path.write_text(json.dumps(parts))
    with pytest.raises(ValueError, match="same images"): load_studies(path)
    parts["train"] = parts["train"][-1:]
    path.write_text(json.dumps(parts))
    assert "Mine." in load_studies(path).findings.tolist()


def test_a_table_without_its_images(copies):
    shutil.rmtree(copies / "kaggle/images")
    with pytest.raises(FileNotFoundError, match="no PNG image in .*kaggle"):
        load_studies(copies / "kaggle/indiana_reports.csv")

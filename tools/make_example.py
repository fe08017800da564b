"make_example.py UID: the study that `xraycap report` describes without images of yours, into xraycap/assets/example/."
import json
import sys

from PIL import Image

from xraycap.files import assets
from xraycap.phantom import study_views
from xraycap.studies import load_studies


def main(uid):
    studies = load_studies("phantom", "chen")
    chosen = studies[(studies.uid == uid) & (studies.split == "test")]
    if chosen.empty: sys.exit(f"{uid} is not a study of the Chen test part.")
    study, folder = chosen.iloc[0], assets / "example"
    folder.mkdir(parents=True, exist_ok=True)
    for name, view in zip(("frontal", "lateral"), study_views(study)):
        Image.fromarray(view).save(folder / f"{name}.png", optimize=True)
    about = dict(uid=uid, findings=study.findings, mesh=list(study.mesh), images="phantom")
    (folder / "study.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    print(f"{folder}: study {uid}, {', '.join(study.mesh)}")


if __name__ == "__main__": main(int(sys.argv[1]))

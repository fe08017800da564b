"The simulated thorax: what must hold for every finding and many patients."
import json

import numpy as np
import pytest
from PIL import Image

from xraycap.body.anatomy import draw_traits, grow, ribs, soft_parts, vertebrae, vessels
from xraycap.files import assets
from xraycap.mesh import FINDINGS, finding_sides, mesh_findings
from xraycap.phantom import phantom, study_views
from xraycap.studies import load_studies

CODES = {
    "Cardiomegaly": "Cardiomegaly/mild", "Opacity": "Opacity/lung/middle lobe/right",
    "Atelectasis": "Pulmonary Atelectasis/base/bilateral", "Granuloma": "Calcified Granuloma/lung/lower lobe/left",
    "Calcified Lymph Node": "Calcinosis/lung/hilum/lymph nodes/left",
    "Spine Degeneration": "Thoracic Vertebrae/degenerative/mild", "Scar": "Cicatrix/lung/apex/bilateral",
    "Tortuous Aorta": "Aorta/tortuous", "Calcified Aorta": "Atherosclerosis/aorta",
    "Interstitial Markings": "Markings/lung/bilateral/interstitial/diffuse",
    "Pleural Effusion": "Pleural Effusion/right/large",
    "Blunted Costophrenic Angle": "Costophrenic Angle/left/blunted", "Elevated Diaphragm": "Diaphragm/left/elevated",
    "Catheter": "Catheters, Indwelling/left", "Airspace Disease": "Infiltrate/lung/upper lobe/right",
    "Fracture": "Fractures, Bone/ribs/right/multiple", "Nodule": "Nodule/lung/lower lobe/left",
    "Pacemaker": "Implanted Medical Device/left", "Surgical Clips": "Surgical Instruments", "Scoliosis": "Scoliosis",
    "Kyphosis": "Kyphosis/mild", "Edema": "Pulmonary Edema/mild", "Hiatal Hernia": "Hernia, Hiatal/small",
    "Pleural Thickening": "Thickening/pleura/left", "Pneumothorax": "Pneumothorax/left/small",
    "Spinal Hardware": "Spinal Fusion", "Hypoinflation": "Lung/hypoinflation",
    "Hyperinflation": "Lung/hyperdistention",
}


def test_every_group_has_a_case(): assert set(CODES) == set(FINDINGS) and len(FINDINGS) >= 20


@pytest.mark.parametrize("finding", FINDINGS)
def test_nothing_changes_outside_the_mask(finding):
    for uid in 101, 102, 103:
        healthy, ill = phantom(uid), phantom(uid, [CODES[finding]])
        assert list(ill.masks) == [finding]
        for before, after, mask in zip(healthy[:2], ill[:2], ill.masks[finding]):
            assert mask.dtype == bool and mask.shape == after.shape
            assert (before[~mask] == after[~mask]).all()
        changed = sum((np.abs(a.astype(int) - b) > 3).sum() for a, b in zip(healthy[:2], ill[:2]))
        assert changed >= 20, f"{finding} cannot be seen on patient {uid}"


def test_second_finding_leaves_the_first_where_it_was():
    one, both = phantom(9, [CODES["Granuloma"]]), phantom(9, [CODES["Granuloma"], CODES["Pacemaker"]])
    assert all((a == b).all() for a, b in zip(one.masks["Granuloma"], both.masks["Granuloma"]))


def test_side_named_is_side_painted():
    for uid in range(20):
        for side, half in (("right", slice(0, 112)), ("left", slice(112, 224))):  # the right is on the left of the film
            mask = phantom(uid, [f"Nodule/lung/upper lobe/{side}"]).masks["Nodule"][0]
            assert mask[:, half].sum() > .9 * mask.sum()


def test_upper_lobe_is_above_lower_lobe():
    nodule = lambda uid, lobe: phantom(uid, [f"Nodule/lung/{lobe}/right"]).masks["Nodule"][0]
    row = lambda uid, lobe: np.mean(np.flatnonzero(nodule(uid, lobe).any(1)))
    assert all(row(uid, "upper lobe") < row(uid, "lower lobe") for uid in range(20))


def test_the_views_agree_on_heights():
    for uid in range(10):
        for finding in "Granuloma", "Nodule", "Opacity", "Hiatal Hernia":
            front, side = (np.flatnonzero(m.any(1)) for m in phantom(uid, [CODES[finding]]).masks[finding])
            assert abs(front[0] - side[0]) <= 2 and abs(front[-1] - side[-1]) <= 2


def test_heart_is_wide_only_where_the_code_says():
    width = lambda mask: np.ptp(np.flatnonzero(mask.any(0))) + 1
    for uid in range(60):
        normal, large = phantom(uid), phantom(uid, ["Cardiomegaly/borderline"])
        assert width(normal.heart) / width(normal.lungs) < .5 < width(large.heart) / width(large.lungs)


def test_amount_of_an_effusion_orders_its_size():
    wet = lambda uid, amount: phantom(uid, [f"Pleural Effusion/left/{amount}"]).frontal.astype(int)
    lost = lambda uid, amount: (wet(uid, amount) - phantom(uid).frontal).sum()
    assert sum(lost(uid, "large") > lost(uid, "small") for uid in range(10)) >= 9


def test_patients_differ_more_than_most_findings_do():
    healthy = np.stack([phantom(uid).frontal.astype(float) for uid in range(12)])
    between = np.abs(healthy[:-1] - healthy[1:]).mean()
    within = [np.abs(phantom(uid, [code]).frontal - healthy[uid]).mean() for code in CODES.values() for uid in range(2)]
    assert np.mean(np.array(within) < between) > .9


def test_codes():
    codes = ["Density/lung/base", "Lung/hyperdistention/mild", "normal", "No Indexing"]
    assert mesh_findings(codes) == {"Opacity", "Hyperinflation"}
    assert (phantom(1, ["Emphysema/", "/", " "]).frontal == phantom(1, ["Emphysema"]).frontal).all()
    assert finding_sides(["Pleural Effusion/bilateral", "Nodule/lung"]) == {"Pleural Effusion": {"right", "left"}}


def test_the_bodies_that_the_shipped_models_learnt_from_are_these():
    "The example was simulated when the models were trained; a body that differs by more than rounding is another one."
    about = json.loads((assets / "example" / "study.json").read_text())
    for image, name in zip(phantom(about["uid"], about["mesh"]), ("frontal", "lateral")):
        difference = np.abs(image.astype(int) - np.asarray(Image.open(assets / "example" / f"{name}.png")))
        assert difference.max() <= 1 and (difference > 0).mean() < .001


def test_the_same_body_has_the_same_parts():
    body = grow(draw_traits(5), {})
    for part in ribs, soft_parts, vertebrae, vessels:
        assert all((a == b).all() for a, b in zip(part(body), part(body)))


def test_every_study_can_be_simulated_and_is_deterministic():
    studies = load_studies("phantom")
    row = studies[studies.split == "test"].iloc[5]
    a, b = study_views(row), study_views(row)
    assert all((x == y).all() and x.shape == (224, 224) and x.dtype == np.uint8 for x, y in zip(a, b))
    for row in studies.iloc[::200].itertuples(): assert study_views(row, 64)[0].std() > 10

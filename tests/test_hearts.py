"The 120 studies of chapter 00's first captioner: whom it learns from, and that their features are today's encoder's."
import numpy as np
import torch

from xraycap.encoder import ImageEncoder
from xraycap.files import assets
from xraycap.phantom import phantom
from xraycap.studies import load_studies


def hearts():
    data = np.load(assets / "hearts.npz")
    return data["uid"], data["features"]


def test_it_learns_from_training_studies_and_is_tried_on_others():
    uids, _ = hearts()
    studies = load_studies().set_index("uid").loc[uids]
    assert len(set(uids)) == 120 and (assets / "hearts.npz").stat().st_size < 500_000
    assert set(studies.split[:110]) == {"train"} and set(studies.split[110:]) == {"val"}
    large = studies.mesh.map(lambda codes: any(code.startswith(("Cardiomegaly", "Cardiac Shadow")) for code in codes))
    assert large[:110].sum() == 55 and large[110:].sum() == 5
    assert studies.findings.str.contains("heart|cardi", case=False).all()


def test_the_features_are_those_of_the_encoder():
    uids, features = hearts()
    mesh = load_studies().set_index("uid").mesh
    views = torch.from_numpy(np.concatenate([np.stack(phantom(int(uid), mesh[uid])[:2]) for uid in uids[[0, 119]]]))
    with torch.inference_mode(): want = ImageEncoder("chest").pooled(views).reshape(2, 2048).numpy()
    np.testing.assert_allclose(features[[0, 119]], want, atol=.02)

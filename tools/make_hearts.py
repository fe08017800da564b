"""make_hearts.py: what the encoder makes of 120 simulated studies, half of them with a large heart, into
xraycap/assets/hearts.npz. Chapter 00 trains its first captioner on the first 110 and tries it on the other ten."""
import numpy as np
import pandas as pd

from xraycap.batches import pool_views
from xraycap.encoder import ImageEncoder
from xraycap.features import store_features
from xraycap.files import assets
from xraycap.mesh import mesh_findings
from xraycap.studies import load_studies


def main():
    studies = load_studies("phantom", "chen")
    speaks = studies.findings.str.contains("heart|cardi", case=False)
    kinds = (studies.mesh.map(lambda mesh: mesh == ["normal"]),
             studies.mesh.map(lambda mesh: "Cardiomegaly" in mesh_findings(mesh)))
    chosen = pd.concat([studies[speaks & kind & (studies.split == part)].sample(n, random_state=0)
                        for part, n in (("train", 55), ("val", 5)) for kind in kinds])
    store = store_features(chosen, ImageEncoder("chest"))
    features = np.stack([pool_views(store[uid]) for uid in chosen.uid]).astype(np.float16)
    np.savez_compressed(assets / "hearts.npz", uid=chosen.uid.to_numpy(np.int16), features=features)
    print(f"{assets / 'hearts.npz'}: {features.shape}, {(assets / 'hearts.npz').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__": main()

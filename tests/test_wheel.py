"The wheel has all that the program needs, and runs where the repository is not."
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    "The wheel, built from a copy of the sources and unzipped."
    tmp = tmp_path_factory.mktemp("wheel")
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    source = tmp / "source"
    source.mkdir()
    about = "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"
    for name in "settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", *about, "xraycap":
        subprocess.run(["cp", "-R", str(root / name), str(source)], check=True)
    (source / "dist").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    wheel, = (source / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp / "site")
    return tmp / "site"


def outside(unpacked, *args):
    env = {**os.environ, "PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=unpacked.parent, env=env)


def test_contents(unpacked):
    files = [p for p in (root / "xraycap").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    packed = {str(p.relative_to(unpacked)) for p in (unpacked / "xraycap").rglob("*") if p.is_file()}
    assert packed == {str(p.relative_to(root)) for p in files}
    assert {f"xraycap/assets/attention/{n}" for n in ("config.json", "vocab.json", "model.safetensors")} <= packed
    assert {"xraycap/assets/chest_encoder.safetensors", "xraycap/assets/chen_split.json"} <= packed
    assert {f"xraycap/assets/example/{n}" for n in ("frontal.png", "lateral.png", "study.json")} <= packed
    info, = unpacked.glob("xraycap-*.dist-info")
    assert "xraycap = xraycap.cli:main" in (info / "entry_points.txt").read_text()
    metadata = (info / "METADATA").read_text()
    for name in "torch", "fastai", "typer", "safetensors": assert f"Requires-Dist: {name}" in metadata


def test_sizes(unpacked):
    assets = unpacked / "xraycap" / "assets"
    assert (assets / "chest_encoder.safetensors").stat().st_size < 15e6
    assert sum(p.stat().st_size for p in (assets / "attention").iterdir()) < 12e6


def test_it_runs_outside_the_repository(unpacked):
    where = outside(unpacked, "-c", "import xraycap; print(xraycap.__file__)").stdout
    assert Path(where.strip()).is_relative_to(unpacked)
    assert outside(unpacked, "-m", "xraycap.cli", "--help").returncode == 0
    result = outside(unpacked, "-m", "xraycap.cli", "report", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["findings"]
    assert (unpacked.parent / "report.png").is_file()


def test_the_oldest_versions_are_the_lower_bounds():
    line = next(o for o in (root / "settings.ini").read_text().splitlines() if o.startswith("requirements"))
    bounds = dict(re.findall(r"([\w-]+)>=([\d.]+)", line))
    oldest = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (root / "tests" / "oldest.txt").read_text(), re.M))
    assert bounds and bounds.items() <= oldest.items()

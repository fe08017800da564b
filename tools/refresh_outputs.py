"""Run notebooks as nbdev_test runs them (slow and notest cells keep the outputs they have) and store the new outputs:
cleaned and light. With --light first, nothing is run: the outputs that are kept become light.

What goes to standard error, progress bars and libraries' warnings with this machine's paths, is not stored, nor are
live widgets. Pictures get the size at which they are read, and are stored as JPEG or as PNG with few colours."""
import os
import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import numpy as np
from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.process import NBProcessor
from PIL import Image

WIDTH = 900  # pixels: a page's column


def skipped(cell, flags):
    "Does nbdev_test leave this cell out?"
    directives = getattr(cell, "directives_", None) or {}
    no_eval = directives.get("eval:", [""])[0].lower() == "false"
    return cell.cell_type != "code" or "nbdev_export(" in cell.source or no_eval or bool(flags & directives.keys())


def still(output):
    "The output without live widgets, which are dead in a file, and of each line what follows its last carriage return."
    output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    if output.get("output_type") == "stream":
        lines = [line.rsplit("\r", 1)[-1] for line in "".join(output["text"]).rstrip("\r").split("\n")]
        output["text"] = [line.rstrip() + "\n" for line in lines if line.strip(" \u2588")]
    return output


def encoded(image, **options):
    "The bytes of an image file."
    file = BytesIO()
    image.save(file, optimize=True, **options)
    return file.getvalue()


def few_colours(image):
    "The image with 64 colours, or with 256 where 64 would show; None where 256 would."
    for n in 64, 256:
        palette = image.quantize(n, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
        error = np.abs(np.asarray(palette.convert("RGB"), int) - np.asarray(image, int)).max(-1)
        if error.mean() < 1 and np.percentile(error, 99.5) < 16: return palette


def light(data):
    "(kind, bytes) of a picture as the smallest file that looks the same; one that is light already stays."
    image = Image.open(BytesIO(data))
    is_light = image.width <= WIDTH and (image.format == "JPEG" or image.mode == "P")
    if is_light: return f"image/{image.format.lower()}", data
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    if image.width > WIDTH: image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.LANCZOS)
    grey = np.ptp(np.asarray(image, int), -1).max() < 8
    palette = few_colours(image)
    files = [("image/png", encoded(palette, format="PNG"))] if palette else []
    if grey: image = image.convert("L")
    files.append(("image/jpeg", encoded(image, format="JPEG", quality=80, progressive=True)))
    return min(files, key=lambda file: len(file[1]))


def lighten(output):
    "The output with light pictures, still shown as large as before, up to the width of a page."
    for old in {"image/png", "image/jpeg"} & output.get("data", {}).keys():
        kind, data = light(b64decode("".join(output["data"].pop(old))))
        output["data"][kind] = b64encode(data).decode()
        if shown := output["metadata"].pop(old, None):
            ratio = min(1, WIDTH / shown["width"])
            output["metadata"][kind] = {side: round(length * ratio) for side, length in shown.items()}
    return output


def refresh(path, flags):
    "Run the notebook at `path` and write it back; nothing is written when a cell fails."
    nb = NBProcessor(path, rm_directives=False, process=True).nb
    shell = CaptureShell(path)
    for cell in nb.cells:
        if cell.cell_type == "code" and not skipped(cell, flags): cell.outputs = []  # it may yield nothing any more
    with working_directory(path.parent):
        try: shell.run_all(nb, exc_stop=True, preproc=lambda cell: skipped(cell, flags))
        except Exception: sys.exit(shell.prettytb(fname=path))
    for cell in nb.cells:
        if "outputs" in cell: cell.outputs = [lighten(still(o)) for o in cell.outputs if o.get("name") != "stderr"]
    clean_nb(nb)
    write_nb(nb, path)


def relight(path):
    "Make the outputs light that the notebook at `path` has."
    nb = read_nb(path)
    for cell in nb.cells: cell.get("outputs", [])[:] = map(lighten, cell.get("outputs", []))
    write_nb(nb, path)


if __name__ == "__main__":
    os.environ["IN_TEST"] = "1"
    flags = set(get_config().tst_flags.split()) - set(os.environ.get("FLAGS", "").split())
    only_light = sys.argv[1:2] == ["--light"]
    for path in [Path(name).resolve() for name in sys.argv[1 + only_light:]]:
        relight(path) if only_light else refresh(path, flags)
        print(f"{path.name}: outputs {'light' if only_light else 'refreshed'}, {path.stat().st_size / 1e3:.0f} kB")

"""Run notebooks as nbdev_test runs them (slow and notest cells keep the outputs they have) and store the new outputs, cleaned.

What goes to standard error, progress bars and libraries' warnings with this machine's paths, is not stored, nor are live widgets."""
import os
import sys
from pathlib import Path

from execnb.nbio import write_nb
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.process import NBProcessor


def skipped(cell, flags):
    "Does nbdev_test leave this cell out?"
    directives = getattr(cell, "directives_", None) or {}
    no_eval = directives.get("eval:", [""])[0].lower() == "false"
    return cell.cell_type != "code" or "nbdev_export(" in cell.source or no_eval or bool(flags & directives.keys())


def still(output):
    "The output without what a progress bar wrote over (of each line, what follows its last carriage return) and without live widgets, which are dead in a file."
    output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    if output.get("output_type") == "stream":
        lines = [line.rsplit("\r", 1)[-1] for line in "".join(output["text"]).rstrip("\r").split("\n")]
        output["text"] = [line.rstrip() + "\n" for line in lines if line.strip(" \u2588")]
    return output


def refresh(path, flags):
    "Run the notebook at `path` and write it back; nothing is written when a cell fails."
    nb = NBProcessor(path, rm_directives=False, process=True).nb
    shell = CaptureShell(path)
    with working_directory(path.parent):
        try: shell.run_all(nb, exc_stop=True, preproc=lambda cell: skipped(cell, flags))
        except Exception: sys.exit(shell.prettytb(fname=path))
    for cell in nb.cells:
        if "outputs" in cell: cell.outputs = [still(o) for o in cell.outputs if o.get("name") != "stderr"]
    clean_nb(nb)
    write_nb(nb, path)


if __name__ == "__main__":
    os.environ["IN_TEST"] = "1"
    flags = set(get_config().tst_flags.split()) - set(os.environ.get("FLAGS", "").split())
    for path in map(Path, sys.argv[1:]):
        refresh(path.resolve(), flags)
        print(f"{path.name}: outputs refreshed")

"""A trained run as one file that runs without this project."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rnnzoo import __version__
from rnnzoo.export import export as export_model
from rnnzoo.files import refuse_as_file, writing
from rnnzoo.hydra.recorded import named
from rnnzoo.hydra.trained import load
from rnnzoo.plain import printable


def export(run: Path, form: str, out: Path | None) -> None:
    """Write the model as one file that runs without this project, `out` or a name of its own in the run's folder.

    See `rnnzoo.export.export`. The metadata has the task, the cell and, in JSON each, what the model's numbers stand
    for, as its data have told: alphabet, vocabulary, classes, columns and scaling.
    Raises `UserError` for what cannot be exported.
    """
    if out is not None:
        refuse_as_file("--out", out)
    trained = load(run)
    name = named(trained.settings)
    task, cell = trained.settings["task"]["name"], trained.settings["model"]["cell"]
    meanings = {key: value for key, value in trained.module.facts().items() if value is not None}
    print(printable(f"exporting {cell}, trained on {task}"), file=sys.stderr, flush=True)
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in meanings.items()}
    file = export_model(trained.module, form, {"rnnzoo": __version__, "task": task, "cell": cell, **metadata})
    path = out or trained.folder / f"{name}.{form}"
    with writing(path) as partial:
        partial.write_bytes(file)
    print(printable(f"written: {path}, {len(file):,} bytes"))

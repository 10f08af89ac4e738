"""`rnnzoo play`: a page on which a trained model, or an untrained cell, moves under one's hands."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

from rnnzoo.errors import UserError
from rnnzoo.files import refuse_as_file, writing
from rnnzoo.plain import printable
from rnnzoo.play import save
from rnnzoo.play.machine import Machine


def play(targets: list[str], out: Path | None, text: str | None, host: str, port: int) -> None:
    """Serve a page for one or two models, or write it as one file with a recorded session."""
    if len(targets) > 2:
        raise UserError("rnnzoo play shows one model, or two side by side")
    if out is not None:
        refuse_as_file("--save", out)
    elif text is not None:
        raise UserError("--text goes with --save; on the page, write it there")
    else:
        from rnnzoo.play import server  # first, for if it is missing, that is to show before a model is loaded
    machines = [_machine(target) for target in targets]
    first = machines[0].view.about().get("given", {})
    for target, machine in zip(targets[1:], machines[1:]):
        if machine.view.kind != machines[0].view.kind:
            raise UserError(f"{targets[0]} and {target}: are of different tasks, and read no common input")
        try:
            machine.view.read(first)
        except UserError as error:
            raise UserError(f"{target}: cannot read what {targets[0]} reads ({error})") from None
    if out is None:
        server.serve(machines, host, port)
        return
    page = save.page(machines, {} if text is None else {"text": text})
    with writing(out) as partly:
        partly.write_text(page, encoding="utf-8")
    print(printable(f"written: {out}, {len(page.encode()):,} bytes; open it in a browser"))


def _machine(target: str) -> Machine:
    path = Path(target)
    if not path.exists():
        from rnnzoo.play import untrained

        try:
            return untrained.machine(target)
        except UserError as error:
            raise UserError(f"{target}: no run's folder, and no cell ({error})") from None
    from rnnzoo.hydra.trained import data_of, load

    trained = load(path)
    task, cell = trained.settings["task"]["name"], trained.settings["model"]["cell"]
    view = trained.module.view(cache(partial(data_of, trained)))
    return Machine(printable(f"{task} · {cell}, {target}"), trained.module, view)

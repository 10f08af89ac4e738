"""Weights & Biases (`logger=wandb`): each run is a W&B run of its own, and the runs of a multirun are one group.

wandb is imported when such a run starts, not before, and only by the first of its processes.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rnnzoo.errors import UserError
from rnnzoo.lightning.framework import pl
from rnnzoo.plain import printable

rank_zero_only = pl.utilities.rank_zero_only


class WandbRun(pl.loggers.WandbLogger):
    """A run at W&B: metrics, the resolved configuration, and in the end plots, samples and the summary.

    Args:
        project: its name at W&B.
        mode: offline, online or disabled.
        group: the name that it shares with other runs; None for none.
        settings: the run's resolved configuration.
        folder: of the run.

    Raises `UserError` when the run starts and W&B refuses it.
    """

    def __init__(
        self,
        project: Annotated[str, Field(pattern=r"^[^/\\#?%:]{1,128}$")],
        mode: Literal["offline", "online", "disabled"],
        group: str | None,
        settings: dict[str, Any],
        folder: Path,
    ) -> None:
        told = f"{settings['task']['name']} {settings['model']['cell']} seed {settings['seed']} {folder.name}"
        super().__init__(
            name=printable(told)[:128],
            id=_earlier(folder),
            project=project,
            mode=mode,
            group=group,
            save_dir=folder,
            settings={"quiet": True, "silent": mode == "offline"},
        )
        self._wandb_init.pop("anonymous", None)  # which Lightning sets and W&B warns of
        self.settings, self.folder = settings, folder

    @property
    @pl.loggers.logger.rank_zero_experiment  # type: ignore[attr-defined]
    def experiment(self) -> Any:
        """The `wandb.Run`, which starts when it is first asked for."""
        import wandb

        try:
            return super().experiment
        except wandb.Error as error:
            cause = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"logger=wandb: {cause}; logger.mode=offline needs no account") from error

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Record the whole configuration, of which `params` are the module's part."""
        self.experiment.config.update(self.settings, allow_val_change=True)

    def conclude(self, summary: dict[str, Any]) -> None:
        """Log the folder's plots and samples, and the figures of summary.json."""
        import wandb

        # Pictures of an epoch were logged when they were drawn.
        plots = [path for path in sorted(self.folder.glob("plots/*.png")) if "_epoch_" not in path.stem]
        found: dict[str, Any] = {f"plots/{path.stem}": wandb.Image(str(path)) for path in plots}
        texts = [[path.stem, path.read_text(encoding="utf-8")] for path in sorted(self.folder.glob("samples/*"))]
        if texts:
            found["samples"] = wandb.Table(["sample", "text"], texts)
        self.log_metrics(found)
        figures = {key: value for key, value in summary.items() if key != "metrics"}
        self.experiment.summary.update({**figures, **summary["metrics"]})


def _earlier(folder: Path) -> str | None:
    """What W&B calls the run that was begun in a folder, for a resumed one to go on in it."""
    # [offline-]run-TIME-ID, and -1, -2, ... behind it where that folder was there: what starts in the same second
    begun = sorted(path.name.partition("run-")[2] for path in folder.glob("wandb/*run-*-*"))
    return begun[-1].split("-")[1] if begun else None


@contextmanager
def finishing() -> Iterator[None]:
    """Finish the W&B run that was started within, however that ends: another job's would go on in it."""
    failed = True
    try:
        yield
        failed = False
    finally:
        wandb: Any = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            run = wandb.run
            run.finish(exit_code=int(failed))
            if run.offline:
                where = shlex.quote(str(Path(run.dir).parent))
                print(printable(f"W&B: kept offline; to upload the run: wandb sync {where}"), flush=True)

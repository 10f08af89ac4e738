"""A run from its configuration to its summary: compose, seed, build, fit, test, summarise."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rnnzoo import Cell, registry
from rnnzoo.engine import tell
from rnnzoo.engine.rehearsal import rehearse
from rnnzoo.engine.trace import author
from rnnzoo.errors import UserError
from rnnzoo.hydra import param_match, summary
from rnnzoo.hydra.done import DIVERGED
from rnnzoo.hydra.kept_folder import KeptFolder
from rnnzoo.hydra.recorded import named, recorded_overrides
from rnnzoo.hydra.refusals import refusing_bad_input
from rnnzoo.hydra.separate_process import is_separate, run_separately
from rnnzoo.hydra.settings import record, record_changes, resolve
from rnnzoo.hydra.task_classes import find_class
from rnnzoo.hydra.trainer import build_trainer, find_callback
from rnnzoo.lightning.arguments import build, refuse_idle, refuse_unknown
from rnnzoo.lightning.checkpoints import load_matching, restoring
from rnnzoo.lightning.framework import pl
from rnnzoo.lightning.module import Diverged
from rnnzoo.lightning.preempt import watch
from rnnzoo.lightning.ranks import rank
from rnnzoo.lightning.records import MetricsCSV
from rnnzoo.lightning.run_lock import locked
from rnnzoo.lightning.together import together
from rnnzoo.lightning.wandb_run import finishing


def run(config: DictConfig) -> list[str]:
    """One run in the folder that Hydra has made; the lines with which it was refused as a job of a sweep."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    watch.last = watch.cells = None  # those of the job before in this process
    with refusing_bad_input(discard=None if config.resume else folder) as refused, finishing(), ExitStack() as stack:
        config = _grouped(config)
        if is_separate(config):
            return run_separately(config, folder)
        if rank() == 0:
            stack.enter_context(locked(folder))
        settings = resolve(config, folder)
        trial = None
        if settings["sweep"]:
            from rnnzoo.hydra.search.trial import own_trial  # Optuna takes a second

            trial = stack.enter_context(own_trial(settings, folder))
        _train(settings, folder, config, trial)
    return refused


def _grouped(config: DictConfig) -> DictConfig:
    """The configuration, in which a multirun's folder names the W&B group of its jobs if `logger.group` is null."""
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    if multirun and OmegaConf.select(config, "logger.group", default="") is None:
        config.logger.group = Path(HydraConfig.get().sweep.dir).name
    return config


def _train(settings: dict[str, Any], folder: Path, config: DictConfig, trial: Any) -> None:
    task, seed = settings["task"], settings["seed"]
    pl.seed_everything(seed, workers=True, verbose=False)
    if settings["cells"]:
        registry.load_all(settings["cells"])
        watch.cells = settings["cells"]
    if settings["ckpt"] and not settings["test_only"]:
        raise UserError("ckpt= needs test_only=true; to continue a run say resume=RUN_DIR")
    if settings["test_only"] and not settings["ckpt"]:
        raise UserError("test_only=true needs ckpt=, the checkpoint to evaluate")
    matched = settings["param_match"] is not None and settings["resume"] is None
    if matched and not OmegaConf.is_interpolation(config.model, "hidden_size"):
        size = settings["model"]["hidden_size"]
        raise UserError(f"param_match chooses the hidden size; leave out param_match or model.hidden_size={size}")

    resuming = settings["resume"] is not None
    if resuming:
        recorded_overrides(folder)  # which are to be added to: what is damaged shows before anything is written
    named(settings)
    kinds = [find_class(task, key, recorded=resuming) for key in ("datamodule", "module")]
    refuse_unknown(task.keys() - {"name", "datamodule", "module", "preset"}, kinds, "task")
    known = {**task, **{key: settings[key] for key in ("model", "optimizer", "engine", "seed")}}
    data = build(kinds[0], known, "task")
    data.prepare_data()
    data.setup()
    if matched:
        size = param_match.matching_size(settings["param_match"], kinds[1], {**known, **data.facts()})
        settings["model"]["hidden_size"] = size
        record(settings, folder)
    module = build(kinds[1], known, "task")
    if not resuming and not settings["test_only"]:  # what was trained so is to stay as it is
        refuse_idle(kinds[1], known, "task")
    module.learn_from(data)
    for cell in (part for part in module.modules() if isinstance(part, Cell)):
        if not author(cell).__module__.startswith("rnnzoo."):
            looped = rehearse(cell)
            if rank() == 0:
                tell(cell, looped, "it is trained with the plain loop")
    resumed = f"{settings['resume']}/checkpoints/last.ckpt" if settings["resume"] else None
    end = settings["trainer"].get("max_epochs") if resumed else None
    start = load_matching(settings["ckpt"] or resumed, module, end)
    metrics_csv = MetricsCSV(folder, start)
    trainer = build_trainer(settings, folder, metrics_csv, module.monitor, module.pictures(), trial)
    if resuming:
        overrides = HydraConfig.get().overrides.task
        find_callback(trainer, KeptFolder).record = lambda: record_changes(settings, folder, overrides)
    best = settings["ckpt"]
    metrics: dict[str, float] = {}

    if not settings["test_only"]:
        if trainer.is_global_zero:
            summary.print_parameters(module, trainer.strategy.root_device)
            (folder / DIVERGED).unlink(missing_ok=True)  # it is given another try
        try:
            with together(trainer), restoring(resumed):
                trainer.fit(module, data, ckpt_path=resumed, weights_only=True)
        except Diverged as error:
            if trainer.is_global_zero:
                summary.diverged(folder, settings, module, trainer, error)
            raise
        metrics = metrics_csv.best(module.monitor)
        if trial is not None:
            trial.value = metrics.get(module.monitor)
        best = find_callback(trainer, pl.callbacks.ModelCheckpoint).best_model_path or None
    if data.has_test:
        with together(trainer), restoring(best):
            metrics.update(trainer.test(module, data, ckpt_path=best, weights_only=True, verbose=False)[0])
    if trainer.is_global_zero:
        metrics.update(data.baseline())
        summary.finish(folder, settings, module, trainer, metrics)

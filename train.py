"""Train a recurrent network: `python train.py model=gru task=imdb`. Compose, seed, build, fit, test, summarise."""

import sys
from contextlib import ExitStack
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tasks.apart import is_apart, run_apart
from tasks.config import cli, record, refusing_bad_input, resolve
from tasks.preempt import heeding_signals, requeued


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent / "conf"), config_name="config")
def main(config: DictConfig) -> list[str]:
    import pytorch_lightning as pl  # takes seconds, which --help need not wait for
    from pytorch_lightning.callbacks import ModelCheckpoint

    from rnnzoo import UserError, registry
    from tasks import run
    from tasks.base import build, find_class, refuse_unknown
    from tasks.match import matching_size
    from tasks.wandb_log import finishing, grouped

    folder = Path(HydraConfig.get().runtime.output_dir)
    with refusing_bad_input(discard=None if config.resume else folder) as refused, finishing(), ExitStack() as stack:
        config = grouped(config)
        if is_apart(config):
            return run_apart(config, folder)
        settings = resolve(config, folder)
        task, seed = settings["task"], settings["seed"]
        trial = None
        if settings["sweep"]:
            from tasks.trial import own_trial

            trial = stack.enter_context(own_trial(settings, folder))
        pl.seed_everything(seed, workers=True, verbose=False)
        if settings["cells"]:
            registry.load(settings["cells"])
        if settings["ckpt"] and not settings["test_only"]:
            raise UserError("ckpt= needs test_only=true; to continue a run say resume=RUN_DIR")
        if settings["test_only"] and not settings["ckpt"]:
            raise UserError("test_only=true needs ckpt=, the checkpoint to evaluate")
        matched = settings["param_match"] is not None and settings["resume"] is None
        if matched and not OmegaConf.is_interpolation(config.model, "hidden_size"):
            size = settings["model"]["hidden_size"]
            raise UserError(f"param_match chooses the hidden size; leave out param_match or model.hidden_size={size}")

        kinds = [find_class(task, key) for key in ("datamodule", "module")]
        refuse_unknown(task.keys() - {"name", "datamodule", "module", "preset"}, kinds, "task")
        known = {key: settings[key] for key in ("model", "optimizer", "engine", "seed")}
        data = build(kinds[0], {**task, **known}, "task")
        arguments = {**task, **known, **data.arguments()}
        if matched:
            settings["model"]["hidden_size"] = matching_size(settings["param_match"], kinds[1], arguments)
            record(settings, folder)
        module = build(kinds[1], arguments, "task")
        resumed = f"{config.resume}/checkpoints/last.ckpt" if config.resume else None
        start = run.load_matching(settings["ckpt"] or resumed, module)
        metrics_csv = run.MetricsCSV(folder, start)
        trainer = run.build_trainer(settings, folder, metrics_csv, module.monitor, module.picture, trial)
        best = settings["ckpt"]
        metrics: dict[str, float] = {}

        if not settings["test_only"]:
            if trainer.is_global_zero:
                run.print_parameters(module)
            trainer.fit(module, data, ckpt_path=resumed, weights_only=True)
            metrics = metrics_csv.best(module.monitor)
            if trial is not None:
                trial.value = metrics.get(module.monitor)
            best = run.find_callback(trainer, ModelCheckpoint).best_model_path or None
        if data.has_test:
            metrics.update(trainer.test(module, data, ckpt_path=best, weights_only=True, verbose=False)[0])
        if trainer.is_global_zero:
            metrics.update(data.baseline())
            run.finish(folder, settings, module, trainer, metrics)
    return refused


if __name__ == "__main__":
    sys.argv[1:] = requeued(sys.argv[1:])
    with heeding_signals():
        cli(main)

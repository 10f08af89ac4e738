"""The LightningModule around a recurrent layer: optimizer, metrics, and the watch over the loss.

A module that has to know something of its data, such as an alphabet, takes it from the trainer's data module.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnzoo import Recurrent, UserError, __version__
from rnnzoo.errors import nearest
from rnnzoo.files import writing
from rnnzoo.lightning.arguments import build, refuse_unknown
from rnnzoo.lightning.examples import examples
from rnnzoo.lightning.figures import save
from rnnzoo.lightning.framework import pl
from rnnzoo.lightning.metrics import EvaluationMetrics, MeanLoss
from rnnzoo.lightning.ridge import Ridge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rnnzoo.lightning.pictures.picture import Picture
    from rnnzoo.play.view import View

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "ridge": Ridge,
}
FINITE_CHECK_EVERY = 50
"""Steps between two looks at the loss on an accelerator, where each look waits for the device."""

MODEL: dict[str, Any] = {"cell": "gru", "hidden_size": 64}
OPTIMIZER: dict[str, Any] = {"name": "adamw", "lr": 3e-3, "weight_decay": 0.01, "schedule": "linear"}
"""What a module is made of unless told otherwise, key by key."""


class Diverged(UserError):
    """A training whose loss or gradient is no longer finite."""


class SequenceModule(pl.LightningModule):
    """Base of the tasks: builds the recurrent layer, the optimizer and the metrics, and watches the loss.

    A subclass makes its layers in `build` and says in `score` what a batch costs. Its constructor ends with
    `self.start()`.

    Args:
        model: `Recurrent`'s keywords but for `input_size` and `engine`, in addition to `MODEL`; a cell's name; or a
            `Recurrent`, which must have the input size that the task needs.
        optimizer: name, lr, schedule (constant or linear) and the torch optimizer's own keywords, in addition to
            `OPTIMIZER`.
        engine: how the cells are run.
        seed: of what the module itself draws, such as samples of text.
    """

    monitor: ClassVar[str] = "val/loss"
    """The metric that chooses the best epoch; higher is better if it is not a loss."""

    told: ClassVar[tuple[str, ...]] = ()
    """Arguments without which nothing can be built; None for one that the data module is to tell."""

    idle_without: ClassVar[Mapping[str, str]] = {}
    """Arguments that change nothing unless another one is set, by name."""

    def __init__(
        self,
        model: dict[str, Any] | Recurrent | str | None = None,
        optimizer: dict[str, Any] | None = None,
        engine: str = "auto",
        seed: int = 1,
    ) -> None:
        super().__init__()
        self._own = (model,) if isinstance(model, Recurrent) else ()
        self.save_hyperparameters(ignore=["model"] if self._own else None)
        if not isinstance(model, Recurrent):
            self.hparams["model"] = {**MODEL, **({"cell": model} if isinstance(model, str) else model or {})}
        chosen = optimizer or {}
        defaults = OPTIMIZER if chosen.get("name", OPTIMIZER["name"]) == OPTIMIZER["name"] else {"schedule": "linear"}
        self.hparams["optimizer"] = {**defaults, **chosen}
        self.is_built = False
        self.ridge: Ridge | None = None
        self.last_loss = self.last_norm = torch.zeros(())
        self.first_loss: Tensor | None = None
        self.train_loss = MeanLoss()
        self.make_optimizer([torch.nn.Parameter(torch.zeros(()))])  # wrong options show before anything is trained

    def build(self) -> None:
        """Make the layers and metrics; all of `told` is known by now."""
        raise NotImplementedError

    def score(self, batch: Any) -> tuple[Any, ...]:
        """A batch's mean loss, over how many elements it is the mean, and what the further metrics take."""
        raise NotImplementedError

    def regression(self, batch: Any) -> tuple[Tensor, Tensor]:
        """What `self.head`, a linear layer, reads of a batch [N, F] and should answer [N, O], for `optimizer=ridge`.

        Raises `UserError` unless a subclass says it.
        """
        raise UserError(
            f"optimizer=ridge: {type(self).__name__} has no linear head that is learned by least squares; choose "
            f"another optimizer, or task=forecast"
        )

    def start(self) -> None:
        """Build, if all that is needed for it is known and it has not been done."""
        if not self.is_built and all(self.hparams[name] is not None for name in self.told):
            self.build()
            self.is_built = True
            if self.hparams["optimizer"]["name"] == "ridge" and type(self).regression is SequenceModule.regression:
                self.regression(None)  # refuses

    def learn_from(self, data: Any) -> None:
        """Take what the data module tells, and build.

        Raises `UserError` when it does not tell enough, or something else than this module was made for.
        """
        facts: Mapping[str, Any] = data.facts() if hasattr(data, "facts") else {}
        for name, value in facts.items():
            if self.hparams.get(name, value) is None:
                self.hparams[name] = value
            elif not _equal(self.hparams.get(name, value), value):
                theirs, mine = (str(v)[:100] for v in (value, self.hparams[name]))
                raise UserError(
                    f"the data have {name}={theirs}, but the module is made for {name}={mine}; give it the data that "
                    f"it learned from, or make another"
                )
        for name in self.told:
            if self.hparams[name] is None:
                kind = type(self).__name__
                raise UserError(f"{kind}: {name} is not known; train it with a data module that tells, or say {name}=")
        self.start()

    def example_inputs(self, steps: int, batch: int) -> dict[str, Tensor]:
        """What `forward` may be given by name, for `rnnzoo export`, of T time steps and B rows; `lengths` [B] need
        not be said, nor `x` [T, B, I] where the layer itself reads it."""
        return {}

    def variables(self, batch: Any) -> dict[str, Tensor]:
        """Numbers of a batch that its answers hang on, by name, for `rnnzoo probe` to read off the states.

        [B] each, or [T, B] with one for each time step of a layer. Batches come in the order of the data's.
        """
        return {}

    def facts(self) -> dict[str, Any]:
        """What it knows of its data: what its numbers stand for, and how they were scaled."""
        return {name: self.hparams[name] for name in self.told}

    @classmethod
    def renewed(cls, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that a checkpoint was written with, by the names that they have now."""
        return dict(checkpoint["hyper_parameters"])

    def setup(self, stage: str) -> None:
        self.learn_from(getattr(self.trainer, "datamodule", None))

    def recurrent(self, input_size: int, forward_only: str = "") -> Recurrent:
        """The layer under test, time first: [T, B, input_size] to [T, B, output_size].

        Raises `UserError` for a layer of another input size, and for a bidirectional one where `forward_only` says why
        it cannot be.
        """
        if self._own:
            [layer] = self._own
            if layer.input_size != input_size or layer.batch_first:
                raise UserError(
                    f"model: its input must be [T, B, {input_size}], not of {layer.input_size} features or batch first"
                )
            layer = copy.deepcopy(layer)  # a task may need several
        else:
            model = self.hparams["model"]
            try:
                layer = Recurrent(input_size=input_size, engine=self.hparams["engine"], **model)
            except UserError as error:
                of_the_model = re.split(r"\W", str(error), maxsplit=1)[0] in model
                raise UserError(f"model.{error}" if of_the_model else str(error)) from error
        if layer.bidirectional and forward_only:
            raise UserError(f"model.bidirectional=true: {forward_only}")
        return layer

    def pictures(self) -> list[Picture]:
        """Pictures that only this module has, for the callback `Pictures`."""
        return []

    def view(self, data: Callable[[], Any]) -> View:
        """What `rnnzoo play` can do with it; unless a subclass says more, show it at sequences of the validation part.

        `data` returns the run's data module, read, or raises `UserError` if the data are not there.
        """
        return examples(data)

    def draw(self, name: str, make: Callable[[], Figure]) -> None:
        """Make a figure and write it to `plots/NAME.png` of the run's folder, in the first process.

        One that fails is a warning, see `figures.save`.
        """
        if self.trainer.is_global_zero:
            save(Path(self.trainer.default_root_dir) / "plots" / f"{name}.png", make)

    def write_sample(self, name: str, text: str) -> None:
        """Write a text to `samples/NAME.txt` of the run's folder."""
        with writing(Path(self.trainer.default_root_dir) / "samples" / f"{name}.txt") as partial:
            partial.write_text(text + "\n", encoding="utf-8")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.ridge is not None:
            features, answers = self.regression(batch)
            self.ridge.see(features, answers)
            return self.training_loss(F.mse_loss(self.head(features), answers), len(answers))  # type: ignore[operator]
        loss, count, *_ = self.score(batch)
        return self.training_loss(loss, count)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.ridge is not None:  # what the head that they have led to makes of all batches so far
            self.train_loss.reset()
            self.train_loss.update(*self.ridge.error())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.val_metrics.update(*self.score(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.test_metrics.update(*self.score(batch))

    def add_metrics(self, **metrics: Any) -> None:
        """Give validation and test the mean loss and a collection of torchmetrics each."""
        self.val_metrics = EvaluationMetrics(metrics)
        self.test_metrics = EvaluationMetrics(metrics)

    @staticmethod
    def single(values: Tensor) -> Tensor:
        """Values in single precision, or as they are if theirs is higher: what losses and metrics are computed from."""
        return values.to(torch.promote_types(values.dtype, torch.float32))

    def training_loss(self, loss: Tensor, count: int | Tensor) -> Tensor:
        """Record the mean loss over `count` elements for the epoch, and return what is to be differentiated."""
        self.last_loss = loss.detach()
        if self.first_loss is None:
            self.first_loss = self.last_loss
        if not self.train_loss.update_called:  # once an epoch is enough for a metric, and to log takes long
            self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.train_loss.update(self.last_loss, count)
        if self.trainer.world_size == 1:
            return loss
        # The processes' gradients are averaged as if their shares were equal: weigh them so that they may differ.
        mean = self.trainer.strategy.reduce(torch.as_tensor(count, device=self.device).float(), reduce_op="mean")
        return loss * (count / mean)

    def log_metrics(self, split: Literal["val", "test"]) -> dict[str, float]:
        """Log and return the split's loss and metrics, and start them anew."""
        metrics = self.val_metrics if split == "val" else self.test_metrics
        values = {f"{split}/{name}": value for name, value in metrics.compute().items()}
        self.log_dict(values, sync_dist=True)
        return {name: float(value) for name, value in values.items()}

    def on_fit_start(self) -> None:
        self.expect(self.trainer.estimated_stepping_batches)

    def on_test_start(self) -> None:
        self.expect(sum(self.trainer.num_test_batches))

    def expect(self, calls: float) -> None:
        """Tell the layers how often they will run, unless they know: compiling must pay back."""
        for layer in self.modules():
            if isinstance(layer, Recurrent) and layer.expected_calls is None:
                layer.expected_calls = int(min(calls, 10**9))

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test")

    def make_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer that was chosen; `UserError` for a wrong option."""
        options = {key: value for key, value in self.hparams["optimizer"].items() if key not in ("name", "schedule")}
        name, schedule = self.hparams["optimizer"].get("name"), self.hparams["optimizer"].get("schedule")
        if name not in OPTIMIZERS:
            raise UserError(f"optimizer.name={name}: unknown; {nearest(str(name), OPTIMIZERS)}")
        if schedule not in ("constant", "linear"):
            raise UserError(f"optimizer.schedule={schedule}: must be constant or linear")
        if "lr" not in options:
            raise UserError("optimizer.lr is missing")
        for key in ("lr", "weight_decay", "momentum"):
            if isinstance(options.get(key), (int, float)) and options[key] < 0:
                raise UserError(f"optimizer.{key}={options[key]}: must not be negative")
        if isinstance(options.get("betas"), list):
            options["betas"] = tuple(options["betas"])
        refuse_unknown(options, [OPTIMIZERS[name]], "optimizer")
        try:
            return build(OPTIMIZERS[name], {**options, "params": parameters}, "optimizer")
        except ValueError as error:
            raise error if isinstance(error, UserError) else UserError(f"optimizer: {error}") from None

    def configure_optimizers(self) -> Any:
        learning, schedule = list(self.parameters()), self.hparams["optimizer"]["schedule"]
        if self.hparams["optimizer"]["name"] == "ridge":
            self.requires_grad_(False)
            learning = [*self.head.requires_grad_(True).parameters()]  # type: ignore[union-attr]
        optimizer = self.make_optimizer(learning)
        self.ridge = optimizer if isinstance(optimizer, Ridge) else None
        if self.trainer.scaler is not None:  # a fused optimizer would undo the scaling itself, too late for clipping
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        if schedule == "constant":
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError("optimizer.schedule=linear needs an end: set trainer.max_epochs or trainer.max_steps")
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """In a resumed run, let learning rate and schedule be what is asked for now, if that is something else."""
        if self.trainer.fit_loop.restarted_mid_epoch and self.trainer.is_last_batch:  # no step comes to log its loss
            self.train_loss._update_count = 1
            self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        [optimizer], rate = self.trainer.optimizers, self.hparams["optimizer"]["lr"]
        schedulers: list[Any] = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        share, changed = 1.0, False
        for scheduler in schedulers:
            total = int(self.trainer.estimated_stepping_batches)
            changed = (scheduler.total_iters, scheduler.base_lrs) != (total, [rate] * len(scheduler.base_lrs))
            scheduler.total_iters, scheduler.base_lrs = total, [rate] * len(scheduler.base_lrs)
            share = 1 - min(scheduler.last_epoch / max(total, 1), 1)
        if changed or (not schedulers and any(group["lr"] != rate for group in optimizer.param_groups)):
            for group in optimizer.param_groups:
                group["lr"] = share * rate
            print(f"the learning rate goes on from {share * rate:.3g}, as the end of this run asks for", flush=True)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:  # a checkpoint from an epoch's end brings that epoch's losses along
            self.train_loss.reset()
            if self.ridge is not None:
                self.ridge.forget()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.last_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.device.type == "cpu" or self.global_step % FINITE_CHECK_EVERY == 0:
            self.check_finite()
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self.last_norm)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:  # the only steps whose values Lightning hands on
            rate = optimizer.param_groups[0]["lr"]
            self.log_dict({"step/loss": self.last_loss, "step/grad_norm": self.last_norm, "step/lr": rate})

    def check_finite(self) -> None:
        """Raise `Diverged` when the last step's loss or gradient was infinite or not a number.

        Where gradients are scaled for float16, those that overflow are not: the step is skipped and the scale lowered.
        """
        if math.isfinite(self.last_loss) and (math.isfinite(self.last_norm) or self.trainer.scaler is not None):
            return
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        raise Diverged(
            f"training diverged at step {self.global_step}: loss {float(self.last_loss):.4g}, gradient norm "
            f"{float(self.last_norm):.4g}, learning rate {rate:.4g}; lower optimizer.lr or trainer.gradient_clip_val"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.trainer.training:
            self.check_finite()
        checkpoint["rnnzoo_version"] = __version__
        with self.train_loss.sync_context():
            checkpoint["train_loss"] = self.train_loss.metric_state
        checkpoint["first_loss"] = self.first_loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.first_loss = checkpoint.get("first_loss")
        if self.global_rank == 0:  # the sums are those of all processes
            for name, state in checkpoint.get("train_loss", {}).items():
                getattr(self.train_loss, name).copy_(state)


def _equal(a: Any, b: Any) -> bool:
    """Whether two facts are the same; the last digits of what was computed depend on the machine."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return math.isclose(a, b, rel_tol=1e-6) if isinstance(a, float) and isinstance(b, float) else bool(a == b)

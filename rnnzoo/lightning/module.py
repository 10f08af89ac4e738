"""What all tasks share: the LightningModule around a recurrent layer, and batches that can be taken up anywhere.

Exact resumption rests on three things here: the order of the batches is a function of seed and epoch alone, the
position in it is the trainer's own, and dropout draws from a generator seeded anew at every batch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import pytorch_lightning as pl
import torch
from hydra.utils import get_class
from pydantic import ConfigDict, ValidationError, create_model
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from rnnzoo import Recurrent, UserError, __version__
from rnnzoo.errors import nearest

T = TypeVar("T")
Key = TypeVar("Key")

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}
FINITE_CHECK_EVERY = 50
"""Steps between two looks at the loss on an accelerator, where each look waits for the device."""


def check(target: Callable[..., Any], arguments: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Those of `arguments` that `target` takes, checked against its annotations.

    Raises `UserError` naming `section.key`, what is wanted there and what was given.
    """
    parameters = inspect.signature(target, eval_str=True).parameters
    given = {name: arguments[name] for name in parameters if name in arguments}
    for name, parameter in parameters.items():
        if name not in given and parameter.default is parameter.empty:
            raise UserError(f"{section}.{name} is missing")
    fields: dict[str, Any] = {name: (parameters[name].annotation, ...) for name in given}
    try:
        create_model(section, __config__=ConfigDict(arbitrary_types_allowed=True, strict=True), **fields)(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"][0]
        wanted = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        raise UserError(f"{section}.{key}={arguments[str(key)]}: {wanted}") from None
    return given


def build(target: Callable[..., T], arguments: Mapping[str, Any], section: str) -> T:
    """Call `target` with those of `arguments` that it takes, checked as in `check`."""
    return target(**check(target, arguments, section))


def refuse_unknown(arguments: Iterable[str], targets: Iterable[Callable[..., Any]], section: str) -> None:
    """Raise `UserError` naming the first of `arguments` that none of `targets` takes."""
    known = {name for target in targets for name in inspect.signature(target).parameters}
    for name in arguments:
        if name not in known:
            raise UserError(f"{section}.{name}: no such key; {nearest(name, known)}")


def find_class(task: Mapping[str, Any], key: str) -> type[Any]:
    """The class whose dotted name is `task[key]`; `UserError` when there is none."""
    path = task.get(key)
    try:
        return get_class(str(path))
    except (ImportError, ValueError) as error:
        raise UserError(f"task.{key}={path}: no such class ({' '.join(str(error).split())})") from error


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Write a file so that it is whole or not there: yields the file to write, then moves it to `path`.

    Raises `UserError` naming `path` when it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        with suppress(NotADirectoryError):
            partial.unlink(missing_ok=True)
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):  # torch's writer buries a full disk in others
            cause = cause.__context__
        if cause is None:
            raise
        raise UserError(f"cannot write {path}: {cause.strerror or cause}") from error


class Diverged(UserError):
    """A training whose loss or gradient is no longer finite."""


class Batches(Generic[Key, T]):
    """The batches of one split, made one by one from keys.

    Args:
        plan: the keys of an epoch's batches in order, from the epoch's number.
        fetch: the batch of a key.
        position: epoch and number of batches already taken in it, asked when iteration begins.
    """

    def __init__(
        self,
        plan: Callable[[int], Sequence[Key]],
        fetch: Callable[[Key], T],
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self.plan, self.fetch, self.position = plan, fetch, position

    def __len__(self) -> int:
        return len(self.plan(0))

    def __iter__(self) -> Iterator[T]:
        epoch, taken = self.position()
        for key in self.plan(epoch)[taken:]:
            yield self.fetch(key)

    def state_dict(self) -> dict[str, Any]:
        """Empty: the trainer knows the position. That both methods exist tells Lightning that we can resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore, see `state_dict`."""


def share(rows: Tensor) -> Tensor:
    """This process's part of a batch's rows: every n-th for n processes, all of them for one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    processes = torch.distributed.get_world_size()
    if len(rows) < processes:
        raise UserError(f"a batch of {len(rows)} cannot be shared by {processes} processes; use fewer, or more data")
    return rows[torch.distributed.get_rank() :: processes]


def in_order(rows: int, batch_size: int) -> Sequence[Tensor]:
    """Row numbers 0..rows-1 in batches of nearly equal size, so that none is too small to be shared."""
    return torch.arange(rows).tensor_split(-(-rows // batch_size))


class SequenceData(pl.LightningDataModule):
    """Base of the data modules, which hold their data in memory from construction on."""

    has_test = True

    def arguments(self) -> dict[str, Any]:
        """What the task's module has to know of the data, as keywords of its constructor."""
        return {}

    def baseline(self) -> dict[str, float]:
        """Test metrics of something simpler, to stand beside the model's in the summary."""
        return {}

    def position(self) -> tuple[int, int]:
        """Epoch and batches taken in it, from the trainer, for the training split's `Batches`."""
        assert self.trainer is not None
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready


def shuffled(rows: int, batch_size: int, seed: int, epoch: int) -> Sequence[Tensor]:
    """Row numbers 0..rows-1 in an order drawn from seed and epoch, in batches of nearly equal size."""
    generator = torch.Generator().manual_seed(hash((seed, epoch)) % 2**63)
    order = torch.randperm(rows, generator=generator)
    return [order[batch] for batch in in_order(rows, batch_size)]


class MeanLoss(Metric):
    """The mean of the losses of batches, weighted by how many elements each has, over all processes."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, count: int) -> None:
        """Add a batch: its mean loss over `count` elements."""
        self.total.add_(loss, alpha=count)
        self.count.add_(count)

    def compute(self) -> Tensor:
        return self.total / self.count


class EvaluationMetrics(torch.nn.Module):
    """The mean loss and further torchmetrics of a split, over all processes."""

    def __init__(self, metrics: dict[str, Any]) -> None:
        super().__init__()
        self.loss = MeanLoss()
        self.further = MetricCollection(metrics).clone()

    def update(self, loss: Tensor, count: int, *prediction_and_target: Tensor) -> None:
        """Add a batch: its mean loss over `count` elements, and what the further metrics take."""
        self.loss.update(loss, count)
        if prediction_and_target:
            self.further.update(*prediction_and_target)

    def compute(self) -> dict[str, Tensor]:
        """The values so far, then start anew."""
        values = {"loss": self.loss.compute(), **self.further.compute()}
        self.loss.reset()
        self.further.reset()
        return values


def mode_of(monitor: str) -> Literal["min", "max"]:
    """Whether a metric is best where it is lowest or highest."""
    return "min" if monitor.endswith("loss") else "max"


class SequenceModule(pl.LightningModule):
    """Base of the tasks: builds the recurrent layer, the optimizer and the metrics, and watches the loss.

    Args:
        model: `Recurrent`'s keywords but for `input_size` and `engine`.
        optimizer: name, lr, schedule (constant or linear) and the torch optimizer's own keywords.
        engine: how the cells are run.
        seed: of the run; together with epoch and batch it seeds each training step's randomness.
    """

    monitor: ClassVar[str] = "val/loss"
    """The metric that chooses the best epoch; higher is better if it is not a loss."""

    picture: ClassVar[str | None] = None
    """Dotted name of the `tasks.pictures.Picture` that only this task has, shown with `pictures=true`."""

    def __init__(self, model: dict[str, Any], optimizer: dict[str, Any], engine: str = "auto", seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.last_loss = self.last_norm = torch.zeros(())
        self.train_loss = MeanLoss()
        self.make_optimizer([torch.nn.Parameter(torch.zeros(()))])  # wrong options show before anything is trained

    def recurrent(self, input_size: int) -> Recurrent:
        """The layer under test, time first: [T, B, input_size] to [T, B, output_size]."""
        return Recurrent(input_size=input_size, engine=self.hparams["engine"], **self.hparams["model"])

    def add_metrics(self, **metrics: Any) -> None:
        """Give validation and test the mean loss and a collection of torchmetrics each."""
        self.val_metrics = EvaluationMetrics(metrics)
        self.test_metrics = EvaluationMetrics(metrics)

    @staticmethod
    def single(values: Tensor) -> Tensor:
        """Values in single precision, or as they are if theirs is higher: what losses and metrics are computed from."""
        return values.to(torch.promote_types(values.dtype, torch.float32))

    def training_loss(self, loss: Tensor, count: int) -> Tensor:
        """Record the mean loss over `count` elements for the epoch, and return what is to be differentiated."""
        self.last_loss = loss.detach()
        if not self.train_loss.update_called:  # once an epoch is enough for a metric, and to log takes long
            self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.train_loss.update(self.last_loss, count)
        if self.trainer.world_size == 1:
            return loss
        # The processes' gradients are averaged as if their shares were equal: weigh them so that they may differ.
        mean = self.trainer.strategy.reduce(torch.tensor(float(count), device=self.device), reduce_op="mean")
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
        optimizer, schedule = self.make_optimizer(list(self.parameters())), self.hparams["optimizer"]["schedule"]
        if self.trainer.scaler is not None:  # a fused optimizer would undo the scaling itself, too late for clipping
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        if schedule == "constant":
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError("optimizer.schedule=linear needs an end: set trainer.max_epochs or trainer.max_steps")
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:  # a checkpoint from an epoch's end brings that epoch's losses along
            self.train_loss.reset()
        seed = hash((self.hparams["seed"], self.current_epoch, batch_idx, self.global_rank)) % 2**63
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":  # torch.manual_seed would see to both, and take a tenth of a small step's time
            torch.get_device_module(self.device).manual_seed(seed)

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.global_rank == 0:  # the sums are those of all processes
            for name, state in checkpoint.get("train_loss", {}).items():
                getattr(self.train_loss, name).copy_(state)

"""Every registered cell as an option of a Hydra group, without a YAML of its own.

Nothing here imports torch unless a cell has to be read, so that help stays quick.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import MISSING, OmegaConf

from rnnzoo import registry

FROM_TASK = ("hidden_size", "num_layers", "bidirectional", "dropout")
"""Keywords of `Recurrent` whose defaults are the task's."""


def register(group: str = "model") -> None:
    """Make every registered cell an option of `group` in one's own Hydra application.

    The option `gru` of `group="model"` makes, by `hydra.utils.instantiate(config.model)`, a `rnnzoo.Recurrent` with the
    cell `gru`. Its fields are the layer's keywords and the cell's own hyperparameters, so that misspelt keys and wrong
    types are refused; `input_size` and `hidden_size` have to be given.
    """
    for name in registry.list_cells():
        _store(group, name, _standing_alone)


def register_models(cells: str | None) -> None:
    """The same for a run of rnnzoo's own, in the group `model`, where the task sets what the layer leaves open.

    Args:
        cells: a file or module with further cells, or several; `UserError` if one cannot be loaded.
    """
    if cells is not None:
        registry.load_all(cells)
    for name in registry.list_cells():
        _store("model", name, _within_a_run)


class _Late(ConfigNode):
    """An option that is made, by the function that stands in place of its node, when it is chosen.

    Hydra copies its whole store for each composition, and most of what is in there would be cells. What is sent to
    another process, which need not know the cell, is made before.
    """

    def __copy__(self) -> ConfigNode:  # which `ConfigStore.load` begins with
        cell = self.name.removesuffix(".yaml")
        fields: Any = self.node
        made = make_dataclass(cell, [*fields(cell), *_of_the_cell(cell)])
        return ConfigNode(self.name, OmegaConf.structured(made), self.group, self.package, self.provider)

    def __deepcopy__(self, memo: Any) -> _Late:
        return self

    def __reduce__(self) -> Any:
        made = copy(self)
        return ConfigNode, (made.name, made.node, made.group, made.package, made.provider)


def _store(group: str, cell: str, fields: Callable[[str], list[Any]]) -> None:
    options = ConfigStore.instance().repo
    for part in group.split("/"):
        options = options.setdefault(part, {})
    node: Any = fields
    options[f"{cell}.yaml"] = _Late(f"{cell}.yaml", node, group, None, "rnnzoo")


def _standing_alone(cell: str) -> list[Any]:
    fields: list[Any] = [("_target_", str, field(default="rnnzoo.Recurrent")), ("cell", str, field(default=cell))]
    for key, parameter in _of_the_layer():
        default = MISSING if parameter.default is parameter.empty else parameter.default
        fields.append((key, parameter.annotation, field(default=default)))
    return fields


def _within_a_run(cell: str) -> list[Any]:
    from rnnzoo.options import keeps  # needs torch, as the cells do

    fields: list[Any] = [("cell", str, field(default=cell))]
    for key, parameter in _of_the_layer():
        if key not in ("input_size", "batch_first", "engine"):
            default = f"${{task.preset.{key}}}" if key in FROM_TASK else parameter.default
            if key == "chrono" and keeps(registry.get(cell)):  # a preset need not have it
                default = "${oc.select:task.preset.chrono,0}"
            fields.append((key, parameter.annotation, field(default=default)))
    return fields


def _of_the_layer() -> list[tuple[str, inspect.Parameter]]:
    from rnnzoo.recurrent import Recurrent  # needs torch, as the cells do

    found = inspect.signature(Recurrent, eval_str=True).parameters
    wide = found["hidden_size"].replace(annotation=Any)  # a number or a list, which the layer checks
    return [(key, p) for key, p in ({**found, "hidden_size": wide}).items() if key not in ("cell", "hyperparameters")]


def _of_the_cell(name: str) -> list[Any]:
    own = registry.get(name).hyperparameters
    return [(key, declared.type, field(default=declared.default)) for key, declared in own.items()]


def named_models(cells: str | None) -> list[str]:
    """The names of `register_models`, read off the source without importing anything: enough for help."""
    own = [path for path in map(Path, registry.split(cells or "")) if path.is_file()]
    paths = [*Path(registry.__file__).with_name("cells").glob("*.py"), *own]
    return [name for path in paths for name in registry.scan(path)]

"""The plugin for Hydra: cells as config groups, and runs from their configuration to their summary.

In an application of one's own, before `hydra.main` composes:

    import rnnzoo.hydra
    rnnzoo.hydra.register(group="model")  # model=gru, model=lstm, ...: `_target_: rnnzoo.Recurrent`

and `hydra.searchpath: [pkg://rnnzoo.conf]` finds rnnzoo's tasks, optimizers and experiments.

Parts: `command_line` reads what a person typed, `models` and `settings` make it a configuration, `run` a run, `trained`
and `verbs` use what a run has left, `report` compares runs, `search/` looks for better ones. Tasks are met by their
configured names only.
"""

from rnnzoo.hydra.models import register

__all__ = ["register"]

"""What there is to choose from: tasks, optimizers, hardware, searches, experiments; `hydra.searchpath: [pkg://rnnzoo.conf]`."""

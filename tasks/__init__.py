"""What the cells are trained on: LightningModules, their data, and what a run leaves."""

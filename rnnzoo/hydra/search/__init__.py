"""Searches: a sweeper for Hydra that runs what Optuna proposes, and survives the death of any of its processes."""

"""Arguments that make a run small enough for a test; what a test adds overrides them."""

SINE = (
    "hardware=cpu", "task=sine", "task.samples=40", "task.window=3", "task.batch_size=8", "task.horizon=2",
    "task.prefix=2", "model.hidden_size=4",
)  # fmt: skip
"""Five batches an epoch."""

TEXT = (
    "hardware=cpu", "task=char_lm", "task.corpus=hello", "task.window=20", "task.streams=7", "task.embedding=4",
    "task.sample_length=5", "model.hidden_size=8", "trainer.max_epochs=1",
)  # fmt: skip

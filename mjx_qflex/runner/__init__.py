"""The host's side of a run: training to the end, logs, checkpoints, evaluation afterwards."""

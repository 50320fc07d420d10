"""What is around a training: its checkpoints, loggers and records, its export, and the runs of a sweep."""

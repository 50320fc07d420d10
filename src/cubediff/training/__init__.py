"""Training: the LightningModule, callbacks, checkpoints, loggers, FSDP."""

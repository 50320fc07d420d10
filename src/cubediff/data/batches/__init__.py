"""Lightning data modules: shards to batches."""

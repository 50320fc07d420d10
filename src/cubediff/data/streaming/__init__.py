"""From shards to batches: catalog and index know where samples lie, remote fetches them, order says what comes when,
stream and loader make the batches, shards is the DataModule that all of it serves."""

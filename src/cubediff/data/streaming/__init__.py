"""From shards to batches in a reproducible order.

`catalog` finds the samples of a dataset, `remote` fetches and caches shards, and `reader` reads single samples. `order`
maps a position of the training stream to a sample, `stream` applies `data.stages` and decodes it, `skipping` counts
samples that are skipped, `batching` makes batches, and `loader` prepares them ahead in threads. `data_module` is the
Lightning data module that uses them, and `settings` holds its options.
"""

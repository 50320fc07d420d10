"""The dataset folder on disk: manifest, tar shards, index."""

"""Builds shards from a source of panoramas.

`write` is the entry point. `engines` runs the work in parallel, `journal` and `publishing` make a build resumable and
atomic, `duplicates` and `splitting` split the panoramas, `shards` and `report` write the output, `check` verifies it.
"""

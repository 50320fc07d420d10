"""From a source of panoramas to shards on disk: write leads; engines run its work, journal resumes it, tars and report
are what comes out, duplicates keep the split honest, check verifies what was built."""

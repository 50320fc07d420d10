"""Conversion of single panoramas, cubemaps and pinhole views: `cubediff convert` and `cubediff view`."""

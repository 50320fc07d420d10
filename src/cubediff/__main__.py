"""`python -m cubediff` is the console script `cubediff`."""

from cubediff.cli import main

main()

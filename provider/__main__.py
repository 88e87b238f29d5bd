"""`python -m provider` is the command `countersign`."""

from provider.cli import main

main()

"""`python -m edgekit` is `edgekit`."""

from .toolkit.cli import main

main()

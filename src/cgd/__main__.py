"""`python -m cgd`, as launchers start it."""

from cgd.cli import main

main()

"""Runs the command as `python -m psserver`."""

from psserver.cli import main

main(prog_name="psserver")

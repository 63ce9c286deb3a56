"""Runs the command as `python -m psworker`."""

from psworker.cli import main

main(prog_name="psworker")

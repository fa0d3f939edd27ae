"""`python -m fedadamw` is the command `fedadamw`."""

from fedadamw.cli import main

main()

"""`python -m pinnsketch`."""

from pinnsketch.cli import main

main()

"""`python -m mvc` is the same as the `mvc` command."""

from mvc.cli import main

main()

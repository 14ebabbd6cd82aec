"""`python -m reprise.launch.cli` is `reprise`."""

from reprise.launch.cli.main import main

main()

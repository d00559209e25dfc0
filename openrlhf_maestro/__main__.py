"""`python -m openrlhf_maestro` is the `maestro` command."""

import sys

from openrlhf_maestro.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

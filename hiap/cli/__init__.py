"""The command ``hiap``: one door to everything that is run from a command line (``hiap --help``).

``commands`` lists them, ``options`` writes the help of those that take key=value from the comments beside each option.
Nothing here waits for torch, so that help comes at once.
"""

from hiap.cli.commands import main

__all__ = ["main"]

import sys

from hiap.cli import main

sys.exit(main(["bench", *sys.argv[1:]]))

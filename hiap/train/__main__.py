import sys

from hiap.cli import main

sys.exit(main(["train", *sys.argv[1:]]))

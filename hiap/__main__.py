import sys

from hiap.formats.cli import main

sys.exit(main())

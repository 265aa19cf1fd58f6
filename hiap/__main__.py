import sys

from hiap.cli import main

sys.exit(main())

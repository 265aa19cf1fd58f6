import sys

from hiap.bench.run import main

sys.exit(main())

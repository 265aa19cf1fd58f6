import sys

from hiap.train.run import main

sys.exit(main())

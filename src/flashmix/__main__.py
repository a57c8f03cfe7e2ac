import sys

from flashmix.cli.main import main

sys.exit(main())

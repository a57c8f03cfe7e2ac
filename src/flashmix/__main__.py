"""``python -m flashmix``, which is also what torchrun starts."""

import os
import sys

from flashmix.cli.main import main

code = main()
if "TORCHELASTIC_RUN_ID" in os.environ:
    # A thread of gloo that wants the interpreter while it shuts down would abort the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)

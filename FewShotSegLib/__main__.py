"""`python -m FewShotSegLib ...` is `fewshotseg ...`."""

import sys

from FewShotSegLib.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

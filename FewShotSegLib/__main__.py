"""`python -m FewShotSegLib ...` is `fewshotseg ...`."""

import os
import sys

# `-m` puts the current folder first, where a numpy.py in a folder of data would run. Nothing may be imported before.
_HERE, _OWN = os.getcwd(), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH109, PTH120
if sys.path[:1] in ([""], [_HERE]) and _HERE != _OWN:
    del sys.path[0]

from FewShotSegLib.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())

"""The side of FewShotSeg that knows 3D Slicer: nodes, views and panel. What computes is FewShotSegLib.

Built and installed, FewShotSegLib lies beside this package. In a checkout it lies one folder up, where Slicer does not
look.
"""

import importlib.util
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]

if importlib.util.find_spec("FewShotSegLib") is None and (_CHECKOUT / "FewShotSegLib").is_dir():
    sys.path.append(str(_CHECKOUT))  # at the end: it must not hide anything of Slicer's

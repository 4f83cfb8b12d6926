"""How a notebook begins: in the root of the repository, its figures on paper and sharp. How they look is `harness.report.style`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def use() -> None:
    """Call it first. Folders such as ``reports/runs`` are then found wherever the notebook was opened."""
    os.chdir(ROOT)
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    import pandas as pd
    from IPython import get_ipython
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    from harness.report.style import PAPER

    get_ipython().run_line_magic("matplotlib", "inline")
    # A figure is transparent, for reports that are light or dark; a notebook has one ground for it.
    set_matplotlib_formats("retina", facecolor=PAPER, bbox_inches=None)
    pd.set_option("display.max_colwidth", None)

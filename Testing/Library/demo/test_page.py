"""The page of the demo."""

from __future__ import annotations

import re
from pathlib import Path


def test_the_report_stands_alone(a_demo: tuple[Path, list[str]]) -> None:
    text = (a_demo[0] / "report.html").read_text(encoding="utf-8")
    assert [link for link in re.findall(r'(?:src|href|srcset)="([^"]{5})', text) if link != "data:"] == []
    assert text.count("<img") >= 3 + 2 * 9 + 2
    for expected in ("patient-4", "right kidney", "synthetic", "adapted, no clicks"):
        assert expected in text

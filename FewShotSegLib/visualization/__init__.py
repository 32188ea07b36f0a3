"""Visualization: charts, contact sheets, overlays, pages."""

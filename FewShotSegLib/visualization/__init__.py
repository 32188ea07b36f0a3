"""What a person looks at: charts, contact sheets, overlays, pages."""

"""`fewshotseg demo`: a small cohort of synthetic patients, adapted to and segmented, with a report."""

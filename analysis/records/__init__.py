"""Results as data frames: run records, benchmark reports, what the paper and others print, and names for a reader."""

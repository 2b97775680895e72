"""Engines: what answers a request. `base` is the seam; `scheduler` runs backends in batches."""

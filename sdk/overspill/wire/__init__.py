"""The wire: generated stubs in `v1`, and `convert` between them and our types."""

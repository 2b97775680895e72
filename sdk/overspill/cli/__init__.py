"""The `overspill` command; `main` is its entry point."""

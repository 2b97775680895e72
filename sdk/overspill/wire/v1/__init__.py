"""Generated from proto/overspill/wire/v1 by proto/generate.py; do not edit."""

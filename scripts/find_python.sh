#!/bin/sh
# Prints the first Python 3.11 or newer on PATH that really starts; nothing where there is none.
for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
    path=$(command -v "$name" 2>/dev/null) || continue
    "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
    echo "$path"
    exit 0
done

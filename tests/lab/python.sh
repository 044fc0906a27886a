#!/bin/sh
# Prints the first Python that is new enough (3.11); ends with 1 when there is none.
for name in python3 python3.13 python3.12 python3.11 python3.14 /usr/bin/python3; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        command -v "$name"
        exit 0
    fi
done
echo "no Python 3.11 or newer" >&2
exit 1

"""`python -m vmi_inside.cli` is `vmi-inside`."""

from vmi_inside.cli import main

main()

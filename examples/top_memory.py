"""Which processes of a guest hold the most memory? Columns are NumPy arrays.

python examples/top_memory.py web01
python examples/top_memory.py file:memory.elf
"""

import sys

import vmi_inside

with vmi_inside.attach(sys.argv[1]) as guest:
    processes = guest.processes(columns=("pid", "name", "uid", "resident_size"))
    user = processes.where(processes.resident_size > 0).sorted("-resident_size")
    for process in user.where(slice(10)):
        print(f"{process.pid:>7} {process.uid:>6} {process.resident_size >> 10:>9} KiB  {process.name!r}")
    print(f"{len(user)} processes, {int(user.resident_size.sum()) >> 20} MiB in all")

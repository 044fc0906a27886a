"""Who listens on the network, in every network namespace of a guest?

python examples/listening.py web01
"""

import sys

import vmi_inside

with vmi_inside.attach(sys.argv[1]) as guest:
    sockets = guest.process_open_sockets()
    listening = sockets.where((sockets.state == "LISTEN") & (sockets.protocol == "tcp"))
    for socket in listening.sorted("net_namespace", "local_port"):
        holder = f"{socket.name!r} (pid {socket.pid})" if socket.pid >= 0 else "held by no process"
        print(f"{socket.net_namespace} {socket.local_address:>24} {socket.local_port:>5}  {holder}")

"""multiprocessing, for pyroute2's sockets, which nobody uses here."""

Pipe = Queue = Process = None

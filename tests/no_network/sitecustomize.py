"""On PYTHONPATH, refuses every connection and look-up of this Python and its children, and writes them down: NETWORK_LOG."""

import os
import socket
import sys


def _refuse(event, arguments):
    if event == "socket.connect" and arguments[0].family not in (socket.AF_INET, socket.AF_INET6):
        return
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        with open(os.environ["NETWORK_LOG"], "a", encoding="utf-8") as log:
            log.write(
                f"{' '.join(sys.orig_argv)}: {event} {arguments[-1] if event.endswith('connect') else arguments[:2]}\n"
            )
        raise OSError(f"the network is refused in this test: {event}")


sys.addaudithook(_refuse)

"""Listens for a daemon and starts it with the sockets, as systemd does; restarts it on request.

    activate.py NAME=ADDRESS... -- COMMAND...

NAME is the name of the sockets; ADDRESS is a path, or HOST:PORT. Prints "listening" and the
daemon's messages to its service manager. SIGUSR1 kills the daemon, SIGUSR2 stops it, SIGHUP starts
it; SIGTERM stops it and ends the script.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading

split = sys.argv.index("--")
sockets, command = sys.argv[1:split], sys.argv[split + 1 :]
names, listeners = [], []
for given in sockets:
    name, address = given.split("=", 1)
    if "/" in address:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
    else:
        host, port = address.rsplit(":", 1)
        listener = socket.socket(socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
    listener.listen(100)
    names.append(name)
    listeners.append(listener)

notify = tempfile.mkdtemp() + "/notify"
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(notify)


def say(line):
    print(line, flush=True)


def hear():
    while True:
        for line in manager.recv(4096).decode().splitlines():
            say("told " + line)


threading.Thread(target=hear, daemon=True).start()


def hand_over():
    # Above all descriptors that are moved, so that none is overwritten before its move.
    high = [os.dup2(listener.fileno(), 100 + at) for at, listener in enumerate(listeners)]
    for at, fd in enumerate(high):
        os.dup2(fd, 3 + at)
        os.close(fd)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def start():
    environment = dict(os.environ)
    environment.update(LISTEN_FDS=str(len(names)), LISTEN_FDNAMES=":".join(names), NOTIFY_SOCKET=notify)
    # Only the process itself knows its id.
    script = 'export LISTEN_PID=$$; exec "$@"'
    return subprocess.Popen(
        ["sh", "-c", script, "sh", *command], env=environment, preexec_fn=hand_over, close_fds=False
    )


signals = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
daemon = start()
say("listening")
while True:
    match signal.sigwait(signals):
        case signal.SIGHUP:
            daemon = start()
            say("started")
        case signal.SIGUSR1:
            daemon.kill()
            daemon.wait()
            say("killed")
        case signal.SIGUSR2:
            daemon.terminate()
            say(f"stopped with {daemon.wait()}")
        case _:
            daemon.terminate()
            sys.exit(daemon.wait())

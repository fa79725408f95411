"""A QMP client that keeps events and replies apart."""
import collections
import json
import socket

import programs


class QmpError(Exception):
    """What the daemon answered instead of a return."""


class QmpClient:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(programs.PATIENCE)
        self.socket.connect(path)
        self.stream = self.socket.makefile("rwb")
        self.events = collections.deque()
        json.loads(self.stream.readline())
        self.execute("qmp_capabilities", {})

    def close(self):
        self.stream.close()
        self.socket.close()

    def execute(self, command, arguments):
        message = {"execute": command, "arguments": arguments}
        self.stream.write(json.dumps(message).encode() + b"\n")
        self.stream.flush()
        while True:
            reply = json.loads(self.stream.readline())
            if "event" not in reply:
                break
            self.events.append(reply)
        if "error" in reply:
            raise QmpError(reply["error"]["desc"])
        return reply["return"]

    def call(self, command, **arguments):
        """What the command returns. Underscores in the names of arguments stand for dashes."""
        return self.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    def transaction(self, *actions, **arguments):
        """Actions are pairs of a name and a dictionary."""
        return self.call("transaction", actions=[{"type": name, "data": data} for name, data in actions], **arguments)

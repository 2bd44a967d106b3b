"""The process that decodes, with a codec that some images break: those that end in a word below."""

import ctypes
import os
import signal
import time

from manifpt.images import decoder

whole = decoder.decoded_or_error
damaged = False


def outcome(data, rule, sizes=()):
    global damaged
    word = data[-8:].strip().decode("latin-1")
    if damaged or word == "segfault":
        ctypes.string_at(0)
    if word == "leave":
        os._exit(0)
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "sleep":
        time.sleep(1000)
    if word == "mislead":
        os.write(3, b"\xff" * 64)  # not an answer
    while word == "spin":
        pass
    damaged = word == "damage"  # the next one dies of what this one did
    return whole(data, rule, sizes)


decoder.decoded_or_error = outcome
decoder.main()

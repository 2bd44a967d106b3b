"""The process that decodes for a reader: image bytes in, pixels out; see ``sandbox``.

    python -m manifpt.images.decoder '[RULE, SIZES]'

It imports only the modules that decoding needs.
"""

import contextlib
import json
import os
import signal
import struct
import sys
from collections.abc import Sequence
from typing import BinaryIO

from PIL import AvifImagePlugin, Image

from manifpt.images import child
from manifpt.images.child import OUT_OF_MEMORY, PIPE_BYTES, READY
from manifpt.images.decode import DecodeError, DecodeRule, decoded_or_error

WALL = 6  # times the limit of processor time may pass while an image is decoded
LENGTH = struct.Struct("<Q")  # before the bytes of an image
# An answer: the lengths of the next parts, a line "ok WIDTH HEIGHT PLACES FORMAT" or "CODE
# MESSAGE", and arrays of bytes: the thumbnail, the pixels. Places are "LEFT,TOP;..." of tiles, "-"
# of none.
ANSWER = struct.Struct("<II")


def serve(rule: DecodeRule, sizes: Sequence[int], images: BinaryIO, answers: BinaryIO) -> None:
    """Decode images until there are no more; an image that exceeds the limits ends the process."""
    for name in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(name, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF, signal.SIGALRM})
    answers.write(READY)
    answers.flush()
    while head := images.read(LENGTH.size):
        data = images.read(*LENGTH.unpack(head))
        signal.setitimer(signal.ITIMER_PROF, rule.max_seconds)
        signal.setitimer(signal.ITIMER_REAL, rule.max_seconds * WALL)
        found = decoded_or_error(data, rule, sizes)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if isinstance(found, DecodeError):
            if found.code == "too_much_memory":
                os._exit(OUT_OF_MEMORY)  # a new child shows whether this image alone needs too much
            text, pixels = f"{found.code} {found}".encode(errors="replace"), b""
        else:
            places = ";".join(f"{x},{y}" for x, y in found.places) or "-"
            text = f"ok {found.width} {found.height} {places} {found.format}".encode()
            arrays = (found.looks, found.pixels, *found.others)
            pixels = b"".join(array.tobytes() for array in arrays)
        answers.write(ANSWER.pack(len(text), len(pixels)) + text + pixels)
        answers.flush()


def main() -> None:
    """Run as the process: rule and sizes as JSON in the first argument, images in, answers out."""
    fields, sizes = json.loads(sys.argv[1])
    rule = DecodeRule(**fields)
    images, answers = os.fdopen(0, "rb", PIPE_BYTES), os.fdopen(os.dup(1), "wb", PIPE_BYTES)
    child.silence()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    Image.MAX_IMAGE_PIXELS = rule.max_pixels
    child.limit_memory(rule.max_memory)
    with contextlib.suppress(BrokenPipeError, struct.error):  # the parent is gone
        serve(rule, sizes, images, answers)
    os._exit(0)


if __name__ == "__main__":
    main()

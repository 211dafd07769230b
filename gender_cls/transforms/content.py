"""The content of image files as programs hold it: bytes, other buffers and file objects."""

import inspect
from contextlib import suppress
from typing import Any

from gender_cls.errors import ImageError

MAX_BYTES = 2**30  # of one file; one that never ends would take all memory
BLOCK = 2**20


def is_content(given: Any) -> bool:
    """Return whether something holds bytes: a buffer that is no array, or an object that can be read."""
    if hasattr(given, "read"):
        return True
    if hasattr(given, "ndim") and not isinstance(given, memoryview):
        return False
    try:
        memoryview(given)
    except TypeError:
        return False
    except ValueError:  # a memoryview that was released
        return True
    return True


def read_content(given: Any) -> bytes:
    """Return the bytes that `is_content` found; a file object is read from its start, if it can go there.

    Raises:
        ImageError: It gives no bytes, more than `MAX_BYTES`, or has several dimensions.
    """
    if hasattr(given, "read"):
        return _read(given)
    view = memoryview(given)
    if view.ndim != 1:
        raise ImageError(f"a buffer of {view.ndim} dimensions; give an array")
    return view.tobytes()


def _read(file: Any) -> bytes:
    with suppress(OSError, AttributeError, ValueError):  # a stream; one that is closed says so below
        _refuse_later(file.seek(0))  # what was just written stands at its end
    blocks: list[bytes] = []
    while block := _refuse_later(file.read(BLOCK)):
        if not isinstance(block, bytes | bytearray | memoryview):
            raise ImageError("a file object that gives no bytes; open it with mode 'rb'")
        blocks.append(bytes(block))
        if len(blocks) * BLOCK > MAX_BYTES and sum(map(len, blocks)) > MAX_BYTES:
            raise ImageError(f"a file object of more than {MAX_BYTES} bytes")
    return b"".join(blocks)


def _refuse_later(result: Any) -> Any:
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()  # else Python warns that nobody waits for it
        raise ImageError("a file object to be awaited; give the bytes that `await file.read()` returns")
    return result

"""Pillow's switch for truncated images, for one thread at a time."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import ImageFile


class _Truncated:
    """Stands for Pillow's LOAD_TRUNCATED_IMAGES, which other libraries set for the whole process, while threads decode.

    Each of these threads has its own value; for all others it is what was set, and that comes back at the end.
    """

    def __init__(self) -> None:
        self.own, self.lock, self.decoding, self.before = threading.local(), threading.Lock(), 0, None
        if hasattr(os, "register_at_fork"):  # else a process that is forked meanwhile would wait for ever
            release = self.lock.release
            os.register_at_fork(before=self.lock.acquire, after_in_parent=release, after_in_child=self._alone)

    def _alone(self) -> None:
        self.decoding = 0  # the threads that were decoding are not in this process
        self.lock.release()

    def __bool__(self) -> bool:
        return bool(getattr(self.own, "keep", self.before))

    @contextmanager
    def only(self, keep: bool) -> Iterator[None]:
        """Let the calling thread keep truncated images, or refuse them."""
        pillow: Any = ImageFile
        with self.lock:
            self.decoding += 1
            if pillow.LOAD_TRUNCATED_IMAGES is not self:
                self.before, pillow.LOAD_TRUNCATED_IMAGES = pillow.LOAD_TRUNCATED_IMAGES, self
        self.own.keep = keep
        try:
            yield
        finally:
            del self.own.keep
            with self.lock:
                self.decoding -= 1
                if not self.decoding and pillow.LOAD_TRUNCATED_IMAGES is self:
                    pillow.LOAD_TRUNCATED_IMAGES = self.before


TRUNCATED = _Truncated()

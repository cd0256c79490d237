"""A file that HDF5 writes into and that survives a full disk.

HDF5 does not survive one by itself: when a write fails while it closes a file, the process dies of a segmentation fault. So failures are kept
from it: data that could not be written stays in memory, `Sink.error` tells, and the writer gives up at the next opportunity.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any


class Sink(io.RawIOBase):
    """A new file for ``h5py.File(sink, "w")``.

    Args:
        path: of the file; an existing one is emptied.

    Raises:
        OSError: if the file cannot be created. Later failures do not raise, see ``error``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("w+b", buffering=0)
        self._position = 0
        self._size = 0
        self._unwritten: list[tuple[int, bytes]] = []
        self.error: OSError | None = None  #: the first failure

    def write(self, data: Any) -> int:
        """Write all bytes; what does not go to disk stays in memory."""
        block = bytes(data)
        start, done = self._position, 0
        if self.error is None:
            try:
                self._file.seek(start)
                while done < len(block):
                    done += self._file.write(block[done:])
            except OSError as error:
                self.error = error
        if done < len(block):
            self._unwritten.append((start + done, block[done:]))
        self._position += len(block)
        self._size = max(self._size, self._position)
        return len(block)

    def readinto(self, buffer: Any) -> int:
        """Read what was written, on disk or not."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self._size - self._position))
        self._file.seek(self._position)
        found = self._file.read(wanted) or b""
        view[:wanted] = found.ljust(wanted, b"\0")
        for start, block in self._unwritten:
            first, last = max(start, self._position), min(start + len(block), self._position + wanted)
            if first < last:
                view[first - self._position : last - self._position] = block[first - start : last - start]
        self._position += wanted
        return wanted

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Set the size."""
        self._size = self._position if size is None else size
        if self.error is None:
            try:
                self._file.truncate(self._size)
            except OSError as error:
                self.error = error
        return self._size

    def sync(self) -> None:
        """Make sure that everything is on disk.

        Raises:
            OSError: if some of it is not: the first failure.
        """
        if self.error is None:
            os.fsync(self._file.fileno())
        else:
            raise self.error

    def close(self) -> None:
        """Close the file; the second time does nothing."""
        if not self.closed:
            self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

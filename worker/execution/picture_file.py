"""A caller's picture as Pillow reads it: a file that costs too much is refused while it is read.

A small file can name many parts. Pillow keeps each part of a header, joins some of them anew with
every further one, and runs over all pixels for each scan of a JPEG, however empty.
"""

from __future__ import annotations

import io
import time

from worker.engine.jobs.job import refusal

#: Most reads of Pillow until it knows a picture's size. Whole files of cameras need 3 to 41.
MAX_HEADER_READS = 20_000
#: Most processor time of the reading thread from the first read to the last, in seconds. The
#: thread's own, so that a busy machine refuses nothing. Noise of the most pixels takes up to 3.
MAX_CPU_S = 20.0
#: Most scans of a progressive JPEG; encoders write about 10. An empty one of the most pixels takes
#: 0.02 s.
MAX_SCANS = 100
_START_OF_SCAN = b"\xff\xda"


class PictureFile(io.BytesIO):
    """The bytes of the picture that a request's field `where` refers to."""

    def __init__(self, data: bytes, where: str) -> None:
        super().__init__(data)
        self._where = where
        self._began_s = time.thread_time()
        self._is_decoding = self._has_scans = False
        self._header_reads = self._header_end = 0
        self._scans, self._last_byte = 1, b""

    def begin_decoding(self, *, has_scans: bool) -> None:
        """The size is known and was checked, and the picture's first scan, if any, was found."""
        self._is_decoding, self._has_scans = True, has_scans

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file; raises `BadRequestError` when the picture costs too much.

        Pillow decodes a block of 64 KiB after each read, so a block of too many scans is refused
        before it is decoded. Pillow catches no such error.
        """
        if time.thread_time() - self._began_s > MAX_CPU_S:
            what, limit = "takes too long to decode", f"<= {MAX_CPU_S:g} s of a processor"
            raise refusal(self._where, what, limit)
        begin = self.tell()
        data = super().read(size)
        if not self._is_decoding:
            self._header_reads += 1
            self._header_end = max(self._header_end, self.tell())
            if self._header_reads > MAX_HEADER_READS:
                what = "has a header of too many parts"
                raise refusal(self._where, what, f"<= {MAX_HEADER_READS} reads")
        elif self._has_scans:
            self._count_scans(data[max(0, self._header_end - begin) :])
        return data

    def _count_scans(self, data: bytes) -> None:
        """Count those that begin in `data`, which is after the beginning of the first.

        The pair of bytes is in no compressed data. Headers have it: in the preview of a camera.
        """
        self._scans += (self._last_byte + data).count(_START_OF_SCAN)
        self._last_byte = data[-1:]
        if self._scans > MAX_SCANS:
            raise refusal(self._where, "has too many scans", f"<= {MAX_SCANS} scans")

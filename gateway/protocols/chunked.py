"""Strict decoder of chunked request bodies. Source: RFC 9112, 7.1.

httptools merges trailer fields into the header fields and does not limit them. It therefore parses request heads only.
"""

import re

MAX_LINE_BYTES = 256
"""Bytes of a chunk-size line with its extensions; small, because the gateway's clients send no extensions."""
MAX_TRAILER_BYTES = 8 * 1024
"""Bytes of all trailer fields together; they are parsed and ignored."""
MAX_TRAILER_FIELDS = 100

_TEXT = rb"[^\x00-\x08\x0a-\x1f\x7f]*"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;" + _TEXT + rb")?\r\n")
_SIZE_LINE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,16}(?:;" + _TEXT + rb")?\r?)?")
_FIELD_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:" + _TEXT + rb"\r\n")
_FIELD_LINE_BEGUN = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+(?::" + _TEXT + rb"\r?)?)?|\r")


class InvalidChunk(Exception):
    """The bytes are not a valid chunked body."""


class TrailerTooLarge(Exception):
    """The trailer section exceeds `MAX_TRAILER_BYTES` or `MAX_TRAILER_FIELDS`."""


class ChunkedDecoder:
    """Incremental decoder of one body."""

    __slots__ = ("_in_trailer", "_missing_bytes", "_trailer_bytes", "_trailer_fields", "_undecoded", "complete")

    def __init__(self) -> None:
        self.complete = False
        """Whether the whole body, including its trailer section, was decoded."""
        self._undecoded = b""
        """An incomplete line."""
        self._missing_bytes = 0
        """Bytes of the current chunk that have not arrived, including the line break after its data."""
        self._in_trailer = False
        self._trailer_bytes = self._trailer_fields = 0

    def decode(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the content in `data`, and the bytes that follow the body.

        The second value is empty until the body is complete. Raises `InvalidChunk` or `TrailerTooLarge`.
        """
        data, self._undecoded = self._undecoded + data, b""
        content: list[bytes] = []
        at = 0
        while at < len(data) and not self.complete:
            if self._missing_bytes:
                at = self._take_chunk(data, at, content)
            elif self._in_trailer:
                at = self._take_field(data, at)
            else:
                at = self._take_size(data, at, content)
        return b"".join(content), data[at:]

    def _take_chunk(self, data: bytes, at: int, content: list[bytes]) -> int:
        taken = min(self._missing_bytes, len(data) - at)
        content_bytes = min(taken, max(self._missing_bytes - 2, 0))
        content.append(data[at : at + content_bytes])
        # The line break may be split between two calls.
        line_break = data[at + content_bytes : at + taken]
        missing_bytes = self._missing_bytes - content_bytes
        if line_break and line_break != b"\r\n"[2 - missing_bytes :][: len(line_break)]:
            raise InvalidChunk
        self._missing_bytes -= taken
        return at + taken

    def _take_size(self, data: bytes, at: int, content: list[bytes]) -> int:
        line = _SIZE_LINE.match(data, at)
        if line is not None and line.end() - at <= MAX_LINE_BYTES:
            start, size = line.end(), int(line[1], 16)
            if size and data.startswith(b"\r\n", start + size):
                # Fast path: the whole chunk is in the buffer, as it usually is.
                content.append(data[start : start + size])
                return start + size + 2
            self._missing_bytes = size + 2 if size else 0
            self._in_trailer = not size
            return start
        if len(data) - at > MAX_LINE_BYTES or not _SIZE_LINE_BEGUN.fullmatch(data, at):
            raise InvalidChunk
        return self._wait(data, at)

    def _take_field(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self.complete = True
            return at + 2
        line = _FIELD_LINE.match(data, at, at + MAX_TRAILER_BYTES)
        end = line.end() if line is not None else len(data)
        if self._trailer_bytes + end - at > MAX_TRAILER_BYTES or self._trailer_fields >= MAX_TRAILER_FIELDS:
            raise TrailerTooLarge
        if line is None:
            if not _FIELD_LINE_BEGUN.fullmatch(data, at):
                raise InvalidChunk
            return self._wait(data, at)
        self._trailer_bytes += end - at
        self._trailer_fields += 1
        return end

    def _wait(self, data: bytes, at: int) -> int:
        """Store an incomplete line until the next call of `decode`."""
        self._undecoded = data[at:]
        return len(data)

"""Decoding of chunked bodies: independent of how the bytes are split, as by llhttp; trailers are bounded."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocols.chunked import ChunkedDecoder, InvalidChunk, TrailerTooLarge

WHOLE = [b"5\r\nabcde\r\n", b"a;x=y\r\n0123456789\r\n", b"1\r\nx\r\n", b"0\r\n", b"00\r\n", b"A: b\r\n", b"\r\n"]
BROKEN = [
    b"ZZ",
    b"\n",
    b"\r",
    b"0",
    b" ",
    b"X:",
    b"5 \r\nabcde\r\n",
    b"GET",
    b"-1\r\n",
    b"\x00",
    b"fffffffffffffffff\r\n",
]
PIECES = st.lists(st.sampled_from([*WHOLE, *BROKEN]), max_size=8).map(b"".join)


def decoded(pieces: list[bytes]) -> tuple[bytes, bool, bytes] | None:
    """Return the content, whether the body is complete, and the bytes after it; None for an invalid body."""
    decoder = ChunkedDecoder()
    content = behind = b""
    try:
        for piece in pieces:
            if decoder.complete:
                behind += piece
                continue
            more, left = decoder.decode(piece)
            content, behind = content + more, behind + left
    except InvalidChunk:
        return None
    return content, decoder.complete, behind


class _Callbacks:
    def __init__(self) -> None:
        self.content = b""
        self.complete = False

    def on_body(self, content: bytes) -> None:
        self.content += content

    def on_message_complete(self) -> None:
        self.complete = True


def decoded_by_llhttp(data: bytes) -> tuple[bytes, bool] | None:
    received = _Callbacks()
    parser = httptools.HttpRequestParser(received)
    parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    try:
        parser.feed_data(data)
    except httptools.HttpParserError:
        return None
    return received.content, received.complete


@given(PIECES, st.data())
def test_decoding_does_not_depend_on_how_the_body_is_split(body: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))

    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]

    assert decoded(pieces) == decoded([body])


@given(PIECES)
def test_a_body_is_decoded_as_by_llhttp(body: bytes) -> None:
    actual = decoded([body])

    assert (actual and actual[:2]) == decoded_by_llhttp(body[: len(body) - len(actual[2])] if actual else body)


@pytest.mark.parametrize("body", [b"5" + b";" + b"x" * 300, b"0" * 17, b"0\r\nno field\r\n", b"0\r\n: empty\r\n"])
def test_an_invalid_chunked_body_is_refused_at_its_first_invalid_byte(body: bytes) -> None:
    with pytest.raises(InvalidChunk):
        ChunkedDecoder().decode(body)


@pytest.mark.parametrize(
    "trailer", [b"X: " + b"a" * 9_000, b"X: a\r\n" * 101, b"X: " + b"a" * 5_000 + b"\r\nY: " + b"a" * 5_000]
)
def test_a_trailer_is_bounded_before_it_is_complete(trailer: bytes) -> None:
    with pytest.raises(TrailerTooLarge):
        ChunkedDecoder().decode(b"0\r\n" + trailer)

"""Markers: opaque, valid for one database, comparable within one timeline. Clients: remembered for a bounded time."""

import asyncio
from base64 import urlsafe_b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.database import replicas
from gateway.database.replica_polls import Primary, _Sample
from gateway.database.replicas import _Clients
from resolvers.consistency import UNKNOWN, Marker, newest, read_marker, write_marker
from resolvers.feed_cursors import FeedCursors

CURSORS = FeedCursors(bytes(range(32)))
OTHERS = FeedCursors(bytes(32))
MARKERS = st.builds(Marker, st.integers(0, 2**16 - 1), st.integers(0, 2**56 - 1))


@given(MARKERS)
def test_a_marker_is_read_back_and_is_url_safe(marker: Marker) -> None:
    text = write_marker(marker, CURSORS)

    assert read_marker(text, CURSORS) == marker
    assert text.replace("-", "").replace("_", "").isalnum()
    assert len(text) == 23


@given(MARKERS)
def test_two_markers_of_one_position_differ_and_do_not_reveal_it(marker: Marker) -> None:
    one, two = write_marker(marker, CURSORS), write_marker(marker, CURSORS)

    assert one != two or marker == UNKNOWN
    assert marker.position.to_bytes(7) not in urlsafe_b64decode(one + "=")


@given(MARKERS)
def test_a_marker_of_another_database_is_none(marker: Marker) -> None:
    assert read_marker(write_marker(marker, OTHERS), CURSORS) is None


@given(MARKERS)
def test_a_marker_from_before_a_restore_asks_for_the_primary(marker: Marker) -> None:
    restored = FeedCursors(bytes(32), retired=[bytes(range(32))])

    assert read_marker(write_marker(marker, CURSORS), restored) == UNKNOWN


@given(st.one_of(st.text(), st.from_regex(r"[A-Za-z0-9_-]{23}", fullmatch=True)))
def test_other_texts_are_no_markers(text: str) -> None:
    assert read_marker(text, CURSORS) is None


@given(st.integers(0, 2**40), st.sampled_from(["loop", "loopbio"]))
def test_a_cursor_of_the_feed_is_no_marker(position: int, brand_id: str) -> None:
    assert read_marker(CURSORS.write(position, brand_id), CURSORS) is None


def test_positions_are_compared_within_one_timeline_only() -> None:
    assert newest([], 1) == 0
    assert newest([Marker(1, 5), Marker(1, 9)], 1) == 9
    assert newest([Marker(1, 5), Marker(2, 9)], 2) is None
    assert newest([UNKNOWN], 1) is None


async def test_the_last_change_of_a_client_is_remembered() -> None:
    clients = _Clients()
    clients.note("a", Marker(1, 5))
    clients.note("a", Marker(1, 7))

    assert clients.of("a") == [Marker(1, 7)]
    assert clients.of("b") == []


async def test_a_dropped_client_reads_as_the_newest_dropped_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas, "MAX_CLIENTS", 2)
    clients = _Clients()
    for number, client_id in enumerate("abcd"):
        clients.note(client_id, Marker(1, number))

    assert clients.of("d") == [Marker(1, 3)]
    assert clients.of("a") == clients.of("never seen") == [Marker(1, 1)]


async def test_a_client_is_forgotten_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = _Clients()
    clients.note("a", Marker(1, 5))
    monkeypatch.setattr(replicas, "CLIENT_SECONDS", -1.0)

    assert clients.of("a") == []


async def test_the_lag_is_the_time_since_the_primary_had_the_position() -> None:
    primary = Primary("postgresql://gateway@localhost/gateway")
    now = asyncio.get_running_loop().time()
    primary.samples.extend([_Sample(100, now - 9), _Sample(200, now - 4), _Sample(300, now)])
    primary._answered_at = now

    assert primary.lag_seconds(50) == float("inf")
    assert primary.lag_seconds(100) == primary.lag_seconds(199) == pytest.approx(9)
    assert primary.lag_seconds(250) == pytest.approx(4)
    assert primary.lag_seconds(300) == primary.lag_seconds(999) == 0
    assert (primary.lag_bytes(250), primary.lag_bytes(999)) == (50, 0)

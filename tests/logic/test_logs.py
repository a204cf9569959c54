"""Log lines: one JSON object each, with the fields of an allow-list and nothing that input could contain."""

import logging

import pytest

from gateway.observability.logs import FIELDS, JsonFormatter, describe
from tests.logs import captured_logs

OURS = logging.getLogger("gateway.test")
LIBRARY = logging.getLogger("library.test")


def test_a_line_has_its_fields_in_order_then_event_level_and_time() -> None:
    record = OURS.makeRecord(
        OURS.name, logging.INFO, "f.py", 1, "request", (), None, extra={"status": 201, "code": None}
    )
    record.created = 1764500000.25

    assert JsonFormatter().format(record) == (
        '{"status":201,"code":null,"event":"request","level":"info","timestamp":"2025-11-30T10:53:20.250000Z"}'
    )


def test_a_field_that_is_not_on_the_list_is_left_out() -> None:
    with captured_logs() as lines:
        OURS.info("request", extra={"notes": "Slept well.", "status": 201})

    assert lines == [{"status": 201, "event": "request", "level": "info"}]


def test_no_field_has_the_name_of_an_attribute_of_every_record() -> None:
    assert FIELDS.isdisjoint({*vars(logging.makeLogRecord({})), "message", "asctime"})


def test_a_message_of_a_library_is_reduced_to_its_origin() -> None:
    with captured_logs() as lines:
        try:
            raise ValueError("Slept well.")
        except ValueError:
            LIBRARY.exception("Failing row: %s", "Slept well.", extra={"reason": "Slept well."})
        LIBRARY.info("too low a level")

    (line,) = lines
    assert line.pop("place").startswith("test_logs.py:")
    assert line == {"logger": "library.test", "error": "ValueError", "event": "library", "level": "error"}


def test_arguments_of_a_message_and_exceptions_are_not_written() -> None:
    error = ValueError("Slept well.")
    with captured_logs() as lines:
        OURS.error("duty of %s", "Slept well.", exc_info=error, extra=describe(error))

    assert lines == [{"error": "ValueError", "place": "unknown", "event": "duty of %s", "level": "error"}]


def test_levels_and_caplog_work(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gateway"):
        OURS.info("request")
        OURS.warning("doorbell", extra={"error": "OSError"})

    (record,) = caplog.records
    assert (record.message, record.levelname, record.__dict__["error"]) == ("doorbell", "WARNING", "OSError")

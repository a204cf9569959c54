"""Batching: a JSON array of operations in one request, answered by an array of response bodies in the same order.

The GraphQL over HTTP specification does not define batching, so it is off unless configured. A malformed array is
refused as a whole. Otherwise each operation is rate-limited, authorized, run and refused separately, as if it had been
sent alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from resolvers.context import Context
from resolvers.errors import GatewayError, InvalidInput, MalformedBody, Violation
from schema.charging import AuditRecord, charge, reserve
from schema.errors import refuse
from schema.execution import Runner, add_marker, parse_request

Operations = Sequence[Mapping[str, Any]]


def operations_of(batch: list[Any], most: int) -> Operations:
    """Return the operations of a batch. Raise `MalformedBody` or `InvalidInput`.

    `most` is the maximum number of operations; 0 means that batching is off.
    """
    if most == 0:
        raise MalformedBody("batching", "Batching is disabled: send one operation as an object, not an array.")
    if not 0 < len(batch) <= most:
        raise MalformedBody("batching", f"A batch must have 1 to {most} operations.")
    invalid = [place for place, each in enumerate(batch) if not isinstance(each, dict)]
    if invalid:
        raise InvalidInput([Violation(f"/{place}", "object", "must be an object") for place in invalid])
    return batch


async def run_batch(
    operations: Operations, runner: Runner, context: Context, note: AuditRecord
) -> list[dict[str, Any]]:
    """Run the operations, and return their response bodies.

    They run sequentially, so that a query sees what the mutation before it recorded. A batch therefore holds no more
    pool connections than a single operation.
    """
    # Each operation has its own request id and `noted` set. Shared, one refusal would hide the same refusal of another
    # operation from the audit log.
    return [
        await _run_alone(
            operation, runner, replace(context, request_id=f"{context.request_id}.{number}", noted=set()), note
        )
        for number, operation in enumerate(operations, 1)
    ]


async def _run_alone(
    operation: Mapping[str, Any], runner: Runner, context: Context, note: AuditRecord
) -> dict[str, Any]:
    try:
        reservation = await reserve(context)
        note(reservation.allowance)
        try:
            ask = parse_request(operation)
        except GatewayError as error:
            raise reservation.refuse(error) from None
        document, _ = await charge(runner, ask, context, reservation, note)
        return (await runner.run(ask, document, context)).body
    except Exception as error:  # noqa: BLE001 - an error affects only its own operation
        body: dict[str, Any] = {"errors": [refuse(runner.known(error, context.request_id), context)]}
        add_marker(body, await context.marker())
        return body

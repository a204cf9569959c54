"""Several operations in one request: a JSON array of them, answered by an array of bodies in the same order.

The specification of GraphQL over HTTP knows nothing of it, so it is off unless configured. What is no array of
operations is refused as a whole; from there on each is counted, let in, run and refused alone, as if it had come alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from resolvers.context import Context
from resolvers.errors import GatewayError, InvalidInput, MalformedBody, Violation
from schema.charging import AuditRecord, charge, reserve
from schema.errors import refuse
from schema.execution import Runner, parse_request

Operations = Sequence[Mapping[str, Any]]


def operations_of(batch: list[Any], most: int) -> Operations:
    """Give the operations of a batch of so many at most, 0 for none. Raises `MalformedBody` or `InvalidInput`."""
    if most == 0:
        raise MalformedBody("batching", "One request is one operation here: send an object, not an array.")
    if not 0 < len(batch) <= most:
        raise MalformedBody("batching", f"A batch must hold 1 to {most} operations.")
    strays = [place for place, each in enumerate(batch) if not isinstance(each, dict)]
    if strays:
        raise InvalidInput([Violation(f"/{place}", "object", "must be an object") for place in strays])
    return batch


async def run_batch(
    operations: Operations, runner: Runner, context: Context, note: AuditRecord
) -> list[dict[str, Any]]:
    """Run the operations and give the bodies of their answers.

    One after another: a query sees what the mutation before it recorded, and no request holds more connections of the
    pool than another.
    """
    return [
        await _run_alone(operation, runner, _alone(context, number), note)
        for number, operation in enumerate(operations, 1)
    ]


def _alone(context: Context, number: int) -> Context:
    # With an id and notes of its own: shared, one operation's refusal would pass for that of another.
    return replace(context, request_id=f"{context.request_id}.{number}", noted=set())


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
    except Exception as error:  # noqa: BLE001 - whatever it is, it stays with this operation
        return {"errors": [refuse(runner.known(error, context.request_id), context)]}

"""What follows a restore of the database to an earlier time (`gateway events restored`)."""

import secrets

from gateway.database.migrate import migrate
from gateway.database.session import open_session

RETIRE_KEY = "UPDATE gateway.feed_key SET retired = retired || key, key = $1"
KEY_BYTES = 32


async def retire_cursors(owner_url: str) -> None:
    """Replace the key of the feed's cursors, so that a cursor of an event that was lost finds no other event.

    A gateway reads the key at its first use, so no gateway may run meanwhile.
    """
    await migrate(owner_url)
    connection = await open_session(owner_url)
    try:
        async with connection.transaction():
            await connection.execute(RETIRE_KEY, secrets.token_bytes(KEY_BYTES))
    finally:
        await connection.close()

"""Keep encounters in a folder until each is recorded: once, whatever the network does. Python 3.11, standard library.

python3 encounters.py keep PATIENT_ID < encounter.json    keeps an encounter, under a key that is made here, once
python3 encounters.py send                                sends the kept encounters; run it as often as you like

ENCOUNTERS_URL, ENCOUNTERS_TOKEN and ENCOUNTERS_OUTBOX say where to, as whom, and which folder.
"""

import os
import random
import sys
import time
import uuid
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

OUTBOX = Path(os.environ.get("ENCOUNTERS_OUTBOX", "outbox"))
TRY_AGAIN = {0, 408, 429, 500, 502, 503, 504}  # 0: no answer came
TRIES = 10


def keep(patient_id: str, encounter: bytes) -> None:
    """Keep an encounter: its file's name is its key, the first line is the patient, the rest is the body."""
    key = str(uuid.uuid4())
    with (OUTBOX / key).open("wb") as file:
        file.write(patient_id.encode() + b"\n" + encounter)
        file.flush()
        os.fsync(file.fileno())
    # Whole, or not there at all.
    (OUTBOX / key).rename(OUTBOX / "waiting" / key)


def send(key: str) -> int:
    """Send an encounter until another try would change nothing, and give the last status."""
    patient_id, _, encounter = (OUTBOX / "waiting" / key).read_bytes().partition(b"\n")
    request = Request(
        f"{os.environ['ENCOUNTERS_URL']}/v1/patients/{quote(patient_id, safe='')}/encounters",
        encounter,
        {
            "Authorization": f"Bearer {os.environ['ENCOUNTERS_TOKEN']}",
            "Content-Type": "application/json",
            "Idempotency-Key": key,
        },
    )
    for number in range(TRIES):
        status, retry_after, answer = try_once(request)
        if status not in TRY_AGAIN:
            break
        # Exponential backoff with jitter, but never sooner than Retry-After.
        time.sleep(max(retry_after, random.uniform(0, min(60, 2**number / 2))))
    if status != 201:
        print(key, status, answer.decode(errors="replace"), file=sys.stderr)
    return status


def try_once(request: Request) -> tuple[int, int, bytes]:
    """Return the status, the least seconds to wait, and the body. Status 0: the request may have arrived."""
    try:
        try:
            answer = urlopen(request, timeout=30)
        except HTTPError as refusal:
            answer = refusal
        with answer:
            seconds = answer.headers.get("Retry-After", "")
            return answer.status, int(seconds) if seconds.isdigit() else 0, answer.read()
    except (OSError, HTTPException) as error:
        return 0, 0, type(error).__name__.encode()


def send_all() -> bool:
    """Send everything that waits. Whether all of it is recorded now."""
    all_recorded = True
    for key in sorted(path.name for path in (OUTBOX / "waiting").iterdir()):
        status = send(key)
        all_recorded &= status == 201
        if status in {401, 403}:
            break  # the token's fault, not the encounter's: the others would fare no better
        if status not in TRY_AGAIN:
            (OUTBOX / "waiting" / key).rename(OUTBOX / ("recorded" if status == 201 else "refused") / key)
    return all_recorded


def main(*arguments: str) -> int:
    """Do what is asked, and give the exit code."""
    if arguments != ("send",) and (len(arguments), *arguments[:1]) != (2, "keep"):
        print("usage: encounters.py keep PATIENT_ID < encounter.json | encounters.py send", file=sys.stderr)
        return 2
    for folder in ("waiting", "recorded", "refused"):
        (OUTBOX / folder).mkdir(parents=True, exist_ok=True)
    if arguments == ("send",):
        return 0 if send_all() else 1
    keep(arguments[1], sys.stdin.buffer.read())
    return 0


sys.exit(main(*sys.argv[1:]))

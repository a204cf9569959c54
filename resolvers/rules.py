"""The validation rules of input, each with a stable name, its meaning, and one breaking and one valid example.

`docs/rules.md` is generated from here, the REST door serves each rule under `/rules/{rule}`, and a test runs the
examples. A `Violation` can only name a rule of `RuleId`, which the type checker ensures.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

RuleId = Literal[
    "utf8",
    "json",
    "object",
    "duplicate_member",
    "number_range",
    "too_deep",
    "required",
    "null",
    "string",
    "enum",
    "too_short",
    "too_long",
    "too_large",
    "uuid",
    "date_time",
    "offset",
    "recorded_status",
    "future",
    "time_order",
    "nul",
    "surrogate",
    "idempotency_key",
    "whole_number",
    "type",
    "unknown_member",
    "misspelt_name",
    "page_size",
    "first_and_last",
    "time_zone",
    "cursor",
    "cursor_expired",
    "consistency",
    "too_many",
    "cost",
    "characters",
    "answer_bytes",
    "too_broad",
    "tokens",
    "depth",
    "fields",
    "aliases",
    "directives",
    "root_fields",
    "operations",
    "introspection",
    "unknown_document",
    "batching",
    "representation",
    "document",
    "operation",
    "subscription",
    "patient_id",
    "erased",
    "slug",
    "csv",
    "columns",
    "line_break",
]

Place = Literal["body", "query", "key", "graphql", "import", "file", "words"]
"""The location of a rule's examples, in the order of the values: a REST body, the query of a list, the header
`Idempotency-Key`, a GraphQL document, a line of an import, or a CSV file. `words` means that the examples are too long
and are described.
"""


class Rule(NamedTuple):
    """The meaning of a rule, with a refused and an accepted example."""

    means: str
    place: Place
    refused: str
    accepted: str


RULES: Mapping[RuleId, Rule] = {
    "utf8": Rule(
        "The body is encoded in UTF-8.",
        "words",
        "A body in UTF-16 or Latin-1, or with an incomplete character.",
        "The same text in UTF-8, or with every character beyond ASCII escaped as `\\uXXXX`.",
    ),
    "json": Rule(
        "The body is exactly one JSON value (RFC 8259): no comments, no trailing comma, no byte order mark.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab",}',
        '{"brand_id": "loop", "encounter_type": "lab"}',
    ),
    "object": Rule(
        "The body, or the named member, is a JSON object.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": "{}"}',
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": {}}',
    ),
    "duplicate_member": Rule(
        "No object, at any depth, has two members of the same name: parsers differ in which of them they use.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": {"room": 1, "room": 2}}',
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": {"rooms": [1, 2]}}',
    ),
    "number_range": Rule(
        "Every number has at most 131,072 digits before the decimal point and 16,383 after it. NaN and Infinity are "
        "not JSON.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": {"dose": NaN}}',
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": {"dose": 0.125}}',
    ),
    "too_deep": Rule(
        "Objects and arrays are nested at most `maximum` levels deep.",
        "words",
        "`metadata` with 33 nested objects.",
        "`metadata` with 32 nested objects.",
    ),
    "required": Rule(
        "The required member is present.",
        "body",
        '{"brand_id": "loop"}',
        '{"brand_id": "loop", "encounter_type": "lab"}',
    ),
    "null": Rule(
        "The member is not null. Leave out a member that has no value.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "notes": null}',
        '{"brand_id": "loop", "encounter_type": "lab"}',
    ),
    "string": Rule(
        "The member is a string.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "notes": ["Slept well."]}',
        '{"brand_id": "loop", "encounter_type": "lab", "notes": "Slept well."}',
    ),
    "enum": Rule(
        "The member is one of the values in `allowed`: in lower case over REST, in upper case over GraphQL.",
        "body",
        '{"brand_id": "loop", "encounter_type": "house_call"}',
        '{"brand_id": "loop", "encounter_type": "office_visit"}',
    ),
    "too_short": Rule(
        "The string has at least `minimum` characters.",
        "body",
        '{"brand_id": "", "encounter_type": "lab"}',
        '{"brand_id": "loop", "encounter_type": "lab"}',
    ),
    "too_long": Rule(
        "The string has at most `maximum` characters, counted as Unicode code points.",
        "words",
        "`chief_complaint` with 2,001 characters, or `notes` with 50,001.",
        "`chief_complaint` with 2,000, `notes` with 50,000.",
    ),
    "too_large": Rule(
        "The member has at most `maximum` bytes as JSON text in which no number has an exponent.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": {"dose": 1e100000}}',
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": {"dose": 1e3}}',
    ),
    "uuid": Rule(
        "The string is a UUID in its hyphenated form (RFC 9562), in upper or lower case.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "provider_id": "3f2504e04f8911d39a0c0305e82c3301"}',
        '{"brand_id": "loop", "encounter_type": "lab", "provider_id": "3f2504e0-4f89-11d3-9a0c-0305e82c3301"}',
    ),
    "date_time": Rule(
        "The string is an RFC 3339 date-time that exists in the calendar, with an offset of at most 23 hours and 59 "
        "minutes. A leap second (`:60`) cannot be stored.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "scheduled_at": "2026-02-30T10:00:00Z"}',
        '{"brand_id": "loop", "encounter_type": "lab", "scheduled_at": "2026-02-28T10:00:00Z"}',
    ),
    "offset": Rule(
        "The date-time has an offset from UTC: without one it does not identify an instant.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "scheduled_at": "2026-01-31T09:30:00"}',
        '{"brand_id": "loop", "encounter_type": "lab", "scheduled_at": "2026-01-31T09:30:00+01:00"}',
    ),
    "recorded_status": Rule(
        "An encounter is recorded with the times of its status: `completed` with the start and the end, `in_progress` "
        "with the start, `cancelled` and `no_show` with both or none, `scheduled` or no status with none. "
        "`entered_in_error` is refused: record the encounter, then mark it.",
        "import",
        '{"patient_id": "p-1", "brand_id": "loop", "encounter_type": "lab", "status": "in_progress"}',
        '{"patient_id": "p-1", "brand_id": "loop", "encounter_type": "lab", "status": "in_progress", '
        '"started_at": "2026-01-31T09:30:00Z"}',
    ),
    "future": Rule(
        "The start and the end of a recorded encounter are not in the future. A minute is allowed for differences "
        "between clocks. A future visit is recorded as scheduled.",
        "import",
        '{"patient_id": "p-1", "brand_id": "loop", "encounter_type": "lab", "status": "in_progress", '
        '"started_at": "9999-01-31T09:30:00Z"}',
        '{"patient_id": "p-1", "brand_id": "loop", "encounter_type": "lab", "scheduled_at": "9999-01-31T09:30:00Z"}',
    ),
    "time_order": Rule(
        "The end of a recorded encounter is not before its start.",
        "import",
        '{"patient_id": "p-1", "brand_id": "loop", "encounter_type": "lab", "status": "completed", '
        '"started_at": "2026-01-31T09:30:00Z", "ended_at": "2026-01-31T09:30:00+01:00"}',
        '{"patient_id": "p-1", "brand_id": "loop", "encounter_type": "lab", "status": "completed", '
        '"started_at": "2026-01-31T09:30:00Z", "ended_at": "2026-01-31T09:50:00Z"}',
    ),
    "nul": Rule(
        "No string, and no name of a member, contains the character NUL: PostgreSQL cannot store it.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "notes": "a\\u0000b"}',
        '{"brand_id": "loop", "encounter_type": "lab", "notes": "a b"}',
    ),
    "surrogate": Rule(
        "No string contains an unpaired surrogate: it is not a Unicode character.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "notes": "\\ud83d"}',
        '{"brand_id": "loop", "encounter_type": "lab", "notes": "\\ud83d\\ude42"}',
    ),
    "idempotency_key": Rule(
        "The key has 1 to 128 visible ASCII characters and is sent once. Quotation marks around it are not part of it.",
        "key",
        "visit 4711",
        "visit-4711",
    ),
    "whole_number": Rule(
        "The query parameter is a whole number from `minimum` to `maximum`, in decimal digits, and is sent once.",
        "query",
        "limit=101",
        "limit=100",
    ),
    "type": Rule(
        "The value has the type that the GraphQL schema declares.",
        "graphql",
        '{"query": "query ($ids: [ID!]!) { patients(ids: $ids) { id } }", "variables": {"ids": [{}]}}',
        '{"query": "query ($ids: [ID!]!) { patients(ids: $ids) { id } }", "variables": {"ids": ["demo-patient"]}}',
    ),
    "unknown_member": Rule(
        "A GraphQL input object has only members that the schema defines. Over REST, an unknown member is ignored and "
        "listed in `X-Ignored`, or refused under `Prefer: handling=strict`.",
        "graphql",
        '{"query": "query ($where: EncounterFilter) { patient(id: \\"demo-patient\\") { encounters(where: $where) '
        '{ totalCount } } }", "variables": {"where": {"colour": "blue"}}}',
        '{"query": "query ($where: EncounterFilter) { patient(id: \\"demo-patient\\") { encounters(where: $where) '
        '{ totalCount } } }", "variables": {"where": {"encounterType": ["LAB"]}}}',
    ),
    "misspelt_name": Rule(
        "No query parameter, member of a GraphQL request, or column or member of an import is a misspelling of a known "
        "name. A misspelling differs in at most two letters, or only in case or white space.",
        "query",
        "Limit=10",
        "limit=10",
    ),
    "page_size": Rule(
        "The page size, `first` or `last`, is from `minimum` to `maximum`.",
        "graphql",
        '{"query": "{ patient(id: \\"demo-patient\\") { encounters(first: 101) { totalCount } } }"}',
        '{"query": "{ patient(id: \\"demo-patient\\") { encounters(first: 100) { totalCount } } }"}',
    ),
    "first_and_last": Rule(
        "A page is requested with `first` or `last`, not with both.",
        "graphql",
        '{"query": "{ patient(id: \\"demo-patient\\") { encounters(first: 1, last: 1) { totalCount } } }"}',
        '{"query": "{ patient(id: \\"demo-patient\\") { encounters(last: 1) { totalCount } } }"}',
    ),
    "time_zone": Rule(
        "A time zone is a name of the IANA time zone database.",
        "graphql",
        '{"query": "{ encounterCounts(by: CREATED_DAY, timeZone: \\"CEST\\") { count } }"}',
        '{"query": "{ encounterCounts(by: CREATED_DAY, timeZone: \\"Europe/Berlin\\") { count } }"}',
    ),
    "cursor": Rule(
        "The cursor belongs to the requested list or feed: it has the same brand, patient, filter and order.",
        "graphql",
        '{"query": "{ patient(id: \\"demo-patient\\") { encounters(after: \\"made-up\\") { totalCount } } }"}',
        '{"query": "{ patient(id: \\"demo-patient\\") { encounters { totalCount } } }"}',
    ),
    "cursor_expired": Rule(
        "The feed still stores the events after the cursor. Otherwise, read the current state and subscribe again.",
        "words",
        "A cursor before the oldest stored event.",
        "A cursor of a stored event, or no cursor.",
    ),
    "consistency": Rule(
        "The text is a marker that a gateway of this database returned in `X-Consistency` or `extensions.consistency`.",
        "graphql",
        '{"query": "{ __typename }", "extensions": {"consistency": "made-up"}}',
        '{"query": "{ __typename }", "extensions": {}}',
    ),
    "too_many": Rule(
        "A list in the arguments has at most `maximum` items, and an object of external ids as many members.",
        "words",
        "`patients(ids: …)` with 101 ids, `recordEncounters(input: …)` with as many items, or 21 external ids.",
        "A list of 100 ids or items, or 20 external ids.",
    ),
    "cost": Rule(
        "An operation can return at most `maximum` objects; the sizes of nested pages are multiplied.",
        "words",
        "100 encounters of 100 patients, each with its patient's 100 encounters.",
        "100 encounters of 100 patients.",
    ),
    "characters": Rule(
        "A GraphQL document has at most `GATEWAY_MAX_CHARACTERS` characters.",
        "words",
        "Two notes of 40,000 characters as literals in a mutation.",
        "The same notes in variables.",
    ),
    "answer_bytes": Rule(
        "An answer has at most `maximum` bytes (`GATEWAY_MAX_ANSWER_BYTES`), and so do the rows that it is built from.",
        "words",
        "A page of 100 encounters with 200 kB of notes and metadata each.",
        "Pages of 20 encounters, or pages without the notes.",
    ),
    "too_broad": Rule(
        "A list of a brand's encounters is found within `GATEWAY_WORKLIST_SECONDS`. An index serves each order, and a "
        "span of the time that the list is ordered by.",
        "words",
        "The cancelled laboratory encounters of ten million, in the order of their last change.",
        "The same with `updatedFrom`, and in the order `UPDATED_AT_DESC`.",
    ),
    "tokens": Rule(
        "A GraphQL document has at most `GATEWAY_MAX_TOKENS` tokens: names, numbers, punctuation.",
        "words",
        "A document of 3,000 tokens where 2,000 are allowed.",
        "The same selections in several requests.",
    ),
    "depth": Rule(
        "The fields of a GraphQL document are nested at most `GATEWAY_MAX_DEPTH` levels deep.",
        "words",
        "An encounter's patient's encounters' patients' encounters, and so on.",
        "The ids of the patients first, their encounters in a second request.",
    ),
    "fields": Rule(
        "A GraphQL document has at most `GATEWAY_MAX_FIELDS` fields; those of a fragment count at every spread.",
        "words",
        "A fragment of 500 fields that is spread in five patients.",
        "The same fields of two patients.",
    ),
    "aliases": Rule(
        "A GraphQL document has at most `GATEWAY_MAX_ALIASES` aliases.",
        "words",
        "One hundred fields `encounter(id: …)`, each with an alias.",
        "`patients(ids: …)` with their encounters.",
    ),
    "directives": Rule(
        "A GraphQL document has at most `GATEWAY_MAX_DIRECTIVES` directives.",
        "words",
        "`@skip` or `@include` on a hundred fields.",
        "One directive on a fragment.",
    ),
    "root_fields": Rule(
        "A GraphQL operation has at most `GATEWAY_MAX_ROOT_FIELDS` fields at its root.",
        "words",
        "A query that reads a hundred encounters by their ids.",
        "Two queries of fifty.",
    ),
    "operations": Rule(
        "A GraphQL document has at most `GATEWAY_MAX_OPERATIONS` operations.",
        "words",
        "A document with all operations of an application.",
        "A document with the operation that is run, or with a few.",
    ),
    "introspection": Rule(
        "The caller may introspect the schema. `GATEWAY_EXPLORER` allows all callers, callers with a scope, or none.",
        "words",
        "`{ __schema { types { name } } }` while the explorer is off.",
        "The printed `schema.graphql`.",
    ),
    "unknown_document": Rule(
        "If there is a manifest of trusted documents, the request contains one of them, or its id.",
        "words",
        "A document that is in no manifest, under the policy `safelist` or `enforce`; an unknown id.",
        "An id of the manifest.",
    ),
    "batching": Rule(
        "A request is one operation, or an array of at most `GATEWAY_BATCH_OPERATIONS` operations; 0 refuses arrays.",
        "graphql",
        '[{"query": "{ __typename }"}]',
        '{"query": "{ __typename }"}',
    ),
    "representation": Rule(
        "A representation in `_entities` is an object with the `__typename` of an entity and its `id`.",
        "words",
        "A representation without an `id`.",
        '`{"__typename": "Patient", "id": "demo-patient"}`.',
    ),
    "document": Rule(
        "The GraphQL document has no syntax error, is valid against the schema and is at most 100 levels deep. The "
        "message states the error, and `locations` its position.",
        "graphql",
        '{"query": "{ colours }"}',
        '{"query": "{ patient(id: \\"demo-patient\\") { id } }"}',
    ),
    "operation": Rule(
        "If a document has several operations, `operationName` names the one to run.",
        "graphql",
        '{"query": "query A { __typename } query B { __typename }"}',
        '{"query": "query A { __typename } query B { __typename }", "operationName": "A"}',
    ),
    "subscription": Rule(
        "A subscription uses WebSocket or server-sent events, not a request that gets a single answer.",
        "words",
        "A subscription in a `POST` that accepts only JSON.",
        "The same subscription over WebSocket.",
    ),
    "patient_id": Rule(
        "A patient's id has 1 to 200 printable characters without a slash, and is neither `.` nor `..`: a URL path can "
        "contain it.",
        "import",
        '{"id": "a/b", "brand_id": "loop"}',
        '{"id": "a-b", "brand_id": "loop"}',
    ),
    "erased": Rule(
        "The id of an erased patient is not registered again. A person who returns is a new patient with a new id.",
        "words",
        "The id of a patient that `gateway patients erase` erased.",
        "An id that the brand never used.",
    ),
    "slug": Rule(
        "A brand consists of lower-case letters and digits, in words joined by `-` or `_`.",
        "import",
        '{"id": "a-b", "brand_id": "Loop Bio"}',
        '{"id": "a-b", "brand_id": "loopbio"}',
    ),
    "csv": Rule(
        "In a CSV import, quotation marks enclose whole values, and are doubled inside them. After a misplaced mark no "
        "row is read, because it could be quoted text.",
        "file",
        'id,brand_id,ward\np-1,loop,the "blue" one',
        'id,brand_id,ward\np-1,loop,"the ""blue"" one"',
    ),
    "columns": Rule(
        "In a CSV import, every row has as many values as the first line has columns.",
        "file",
        "id,brand_id\np-1",
        "id,brand_id\np-1,loop",
    ),
    "line_break": Rule(
        "In a CSV import of patients, a quoted value ends on the line on which it begins.",
        "file",
        'id,brand_id,ward\np-1,loop,"the blue\none"',
        'id,brand_id,ward\np-1,loop,"the blue one"',
    ),
}

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
    "nul",
    "surrogate",
    "idempotency_key",
    "whole_number",
    "type",
    "unknown_member",
    "misspelt_name",
    "page_size",
    "first_and_last",
    "cursor",
    "cursor_expired",
    "too_many",
    "cost",
    "characters",
    "answer_bytes",
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
    """The meaning of a rule, with an example that breaks it and one that satisfies it."""

    means: str
    place: Place
    breaks: str
    keeps: str


RULES: Mapping[RuleId, Rule] = {
    "utf8": Rule(
        "The body is UTF-8, and nothing else.",
        "words",
        "A body in UTF-16 or Latin-1, or with half of a character.",
        "The same text in UTF-8, or with everything beyond ASCII written as `\\uXXXX`.",
    ),
    "json": Rule(
        "The body is exactly one JSON value (RFC 8259): no comments, no trailing comma, no byte order mark.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab",}',
        '{"brand_id": "loop", "encounter_type": "lab"}',
    ),
    "object": Rule(
        "The body, or the member that is named, is a JSON object.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": "{}"}',
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": {}}',
    ),
    "duplicate_member": Rule(
        "No object names a member twice, at any depth: two readers would understand it differently.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": {"room": 1, "room": 2}}',
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": {"rooms": [1, 2]}}',
    ),
    "number_range": Rule(
        "Every number can be stored with all its digits: at most 131,072 before the point and 16,383 after it; NaN and "
        "Infinity are no numbers.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": {"dose": NaN}}',
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": {"dose": 0.125}}',
    ),
    "too_deep": Rule(
        "Objects and arrays lie within each other at most so deep; `maximum` says how many levels.",
        "words",
        "`metadata` with 33 objects, each in the one before.",
        "`metadata` with 32 of them.",
    ),
    "required": Rule(
        "The member is there.",
        "body",
        '{"brand_id": "loop"}',
        '{"brand_id": "loop", "encounter_type": "lab"}',
    ),
    "null": Rule(
        "The member is not null. One that is not known is left out.",
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
        "The member is one of the values in `allowed`, in lower case over REST, in upper case over GraphQL.",
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
        "The member, written as JSON with every number in full, has at most `maximum` bytes.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": {"dose": 1e100000}}',
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": {"dose": 1e3}}',
    ),
    "uuid": Rule(
        "The string is a UUID in its hyphenated form (RFC 9562); either case will do.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "provider_id": "3f2504e04f8911d39a0c0305e82c3301"}',
        '{"brand_id": "loop", "encounter_type": "lab", "provider_id": "3f2504e0-4f89-11d3-9a0c-0305e82c3301"}',
    ),
    "date_time": Rule(
        "The string is an RFC 3339 date-time, on a day and at a time that exist, with an offset of at most 23 hours "
        "and 59 minutes. A leap second (`:60`) cannot be kept.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "scheduled_at": "2026-02-30T10:00:00Z"}',
        '{"brand_id": "loop", "encounter_type": "lab", "scheduled_at": "2026-02-28T10:00:00Z"}',
    ),
    "offset": Rule(
        "The date-time says how far from UTC it is: without that it names no instant.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "scheduled_at": "2026-01-31T09:30:00"}',
        '{"brand_id": "loop", "encounter_type": "lab", "scheduled_at": "2026-01-31T09:30:00+01:00"}',
    ),
    "nul": Rule(
        "No string, and no name of a member, contains the character NUL: the database cannot hold it.",
        "body",
        '{"brand_id": "loop", "encounter_type": "lab", "notes": "a\\u0000b"}',
        '{"brand_id": "loop", "encounter_type": "lab", "notes": "a b"}',
    ),
    "surrogate": Rule(
        "Surrogates come in pairs: half of one is no character.",
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
        "The number in the query is a whole one from `minimum` to `maximum`, in digits, and given once.",
        "query",
        "limit=101",
        "limit=100",
    ),
    "type": Rule(
        "The value is of the type that the GraphQL schema names.",
        "graphql",
        '{"query": "query ($ids: [ID!]!) { patients(ids: $ids) { id } }", "variables": {"ids": [{}]}}',
        '{"query": "query ($ids: [ID!]!) { patients(ids: $ids) { id } }", "variables": {"ids": ["demo-patient"]}}',
    ),
    "unknown_member": Rule(
        "An input object over GraphQL has no member that the schema does not define. Over REST it is ignored and told "
        "in `X-Ignored`, or refused under `Prefer: handling=strict`.",
        "graphql",
        '{"query": "query ($where: EncounterFilter) { patient(id: \\"demo-patient\\") { encounters(where: $where) '
        '{ totalCount } } }", "variables": {"where": {"colour": "blue"}}}',
        '{"query": "query ($where: EncounterFilter) { patient(id: \\"demo-patient\\") { encounters(where: $where) '
        '{ totalCount } } }", "variables": {"where": {"encounterType": ["LAB"]}}}',
    ),
    "misspelt_name": Rule(
        "No query parameter, no member of a GraphQL request, and no column or member in an import, is nearly a known "
        "one: within two letters of it, or the same in another case or with other white space.",
        "query",
        "Limit=10",
        "limit=10",
    ),
    "page_size": Rule(
        "A page is asked for with `first` or `last` from `minimum` to `maximum`.",
        "graphql",
        '{"query": "{ patient(id: \\"demo-patient\\") { encounters(first: 101) { totalCount } } }"}',
        '{"query": "{ patient(id: \\"demo-patient\\") { encounters(first: 100) { totalCount } } }"}',
    ),
    "first_and_last": Rule(
        "A page is asked for from one end of the list.",
        "graphql",
        '{"query": "{ patient(id: \\"demo-patient\\") { encounters(first: 1, last: 1) { totalCount } } }"}',
        '{"query": "{ patient(id: \\"demo-patient\\") { encounters(last: 1) { totalCount } } }"}',
    ),
    "cursor": Rule(
        "The cursor was given out by this very list or feed: same brand, patient and filter.",
        "graphql",
        '{"query": "{ patient(id: \\"demo-patient\\") { encounters(after: \\"made-up\\") { totalCount } } }"}',
        '{"query": "{ patient(id: \\"demo-patient\\") { encounters { totalCount } } }"}',
    ),
    "cursor_expired": Rule(
        "The place in the feed of events is still kept. One that is not: read what is there now and go on from there.",
        "words",
        "A cursor from before the oldest event that is kept.",
        "A cursor of an event that is kept, or none.",
    ),
    "too_many": Rule(
        "A list in the arguments has at most `maximum` items.",
        "words",
        "`patients(ids: …)` with 101 ids, or `recordEncounters(input: …)` with as many items.",
        "A hundred of either.",
    ),
    "cost": Rule(
        "An operation could give at most `maximum` objects, page sizes multiplied with what lies below them.",
        "words",
        "100 encounters of 100 patients, each with its patient's 100 encounters.",
        "100 encounters of 100 patients.",
    ),
    "characters": Rule(
        "A GraphQL document has at most `GATEWAY_MAX_CHARACTERS` characters.",
        "words",
        "Two notes of 40,000 characters written into a mutation.",
        "The same notes in variables.",
    ),
    "answer_bytes": Rule(
        "An answer has at most `maximum` bytes (`GATEWAY_MAX_ANSWER_BYTES`); so have the rows that it is made of.",
        "words",
        "A page of 100 encounters with 200 kB of notes and metadata each.",
        "The same in pages of 20, or without the notes.",
    ),
    "tokens": Rule(
        "A GraphQL document has at most `GATEWAY_MAX_TOKENS` tokens: names, numbers, punctuation.",
        "words",
        "A document of 3,000 tokens where 2,000 are allowed.",
        "The same in several requests.",
    ),
    "depth": Rule(
        "The fields of a GraphQL document are nested at most `GATEWAY_MAX_DEPTH` levels deep.",
        "words",
        "An encounter's patient's encounters' patients' encounters, and so on.",
        "The ids of the patients first, their encounters in a second request.",
    ),
    "fields": Rule(
        "A GraphQL document has at most `GATEWAY_MAX_FIELDS` fields, those of a fragment wherever it is spread.",
        "words",
        "A fragment of 500 fields that is spread in five patients.",
        "The same fields of two patients.",
    ),
    "aliases": Rule(
        "A GraphQL document has at most `GATEWAY_MAX_ALIASES` aliases.",
        "words",
        "One hundred `encounter(id: …)` under names of their own.",
        "`patients(ids: …)` with their encounters.",
    ),
    "directives": Rule(
        "A GraphQL document has at most `GATEWAY_MAX_DIRECTIVES` directives.",
        "words",
        "`@skip` or `@include` on a hundred fields.",
        "A fragment with one of them.",
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
        "A document that holds all operations of an application.",
        "A document with the one that is run, or a few.",
    ),
    "introspection": Rule(
        "The schema is told to those who may know it: to all, to callers with a scope, or nobody (`GATEWAY_EXPLORER`).",
        "words",
        "`{ __schema { types { name } } }` where the explorer is off.",
        "The printed `schema.graphql`.",
    ),
    "unknown_document": Rule(
        "Where documents are trusted by a manifest, the document is one of them, or the id that stands for one.",
        "words",
        "A document that is in no manifest, where the policy is `safelist` or `enforce`; an id that nobody gave.",
        "The id that the manifest names.",
    ),
    "batching": Rule(
        "A request is one operation; or an array of at most `GATEWAY_BATCH_OPERATIONS`, where that is more than 0.",
        "graphql",
        '[{"query": "{ __typename }"}]',
        '{"query": "{ __typename }"}',
    ),
    "representation": Rule(
        "What a router asks for in `_entities` is an object with the `__typename` of an entity and its `id`.",
        "words",
        "A representation without an `id`.",
        '`{"__typename": "Patient", "id": "demo-patient"}`.',
    ),
    "document": Rule(
        "The GraphQL document has no syntax error, fits the schema and is at most 100 levels deep; the message says "
        "what is wrong and `locations` where.",
        "graphql",
        '{"query": "{ colours }"}',
        '{"query": "{ patient(id: \\"demo-patient\\") { id } }"}',
    ),
    "operation": Rule(
        "Of a document with several operations, `operationName` names the one to run.",
        "graphql",
        '{"query": "query A { __typename } query B { __typename }"}',
        '{"query": "query A { __typename } query B { __typename }", "operationName": "A"}',
    ),
    "subscription": Rule(
        "A subscription is asked for where its events can be delivered, and not in a single request for one answer.",
        "words",
        "A subscription in a `POST` that takes one JSON answer.",
        "The same over WebSocket.",
    ),
    "patient_id": Rule(
        "A patient's id has 1 to 200 printable characters, no slash among them, and is neither `.` nor `..`: a URL can "
        "carry it.",
        "import",
        '{"id": "a/b", "brand_id": "loop"}',
        '{"id": "a-b", "brand_id": "loop"}',
    ),
    "slug": Rule(
        "A brand has lower-case letters and digits, in words joined by `-` or `_`.",
        "import",
        '{"id": "a-b", "brand_id": "Loop Bio"}',
        '{"id": "a-b", "brand_id": "loopbio"}',
    ),
    "csv": Rule(
        "In an import, quotation marks stand around whole values, and are doubled inside. After a mark where none may "
        "stand, no row can be told from quoted text, so none is read.",
        "file",
        'id,brand_id,ward\np-1,loop,the "blue" one',
        'id,brand_id,ward\np-1,loop,"the ""blue"" one"',
    ),
    "columns": Rule(
        "In an import, every line has as many values as the first names columns.",
        "file",
        "id,brand_id\np-1",
        "id,brand_id\np-1,loop",
    ),
    "line_break": Rule(
        "In an import of patients, a quoted value ends on the line it began on.",
        "file",
        'id,brand_id,ward\np-1,loop,"the blue\none"',
        'id,brand_id,ward\np-1,loop,"the blue one"',
    ),
}

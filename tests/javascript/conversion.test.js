// Run by tests/logic/test_conversion.py, which links web/src beside this file as `pages`.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import test from "node:test";
import { NotConvertible, toGraphql, toRest } from "./pages/conversion.js";
import { read, write } from "./pages/exact_json.js";
import { words } from "./pages/shell.js";

const BASE = { base: "http://127.0.0.1:8000" };
const BY_VARIABLES = `mutation ($patientId: ID!, $input: RecordEncounterInput!, $key: String) {
  recordEncounter(patientId: $patientId, input: $input, idempotencyKey: $key) { __typename }
}`;

const byShell = (command) =>
  execFileSync("sh", ["-c", `printf '%s\\0' ${command}`], { env: { TOKEN: "$TOKEN" } }).toString().split("\0").slice(0, -1);

const inline = (call) => toRest(`mutation { ${call} { __typename } }`, "", BASE);

const body = (command) => words(command).at(-1);

const SPECIAL_TEXTS = [
  "It's", `"quoted"`, "back\\slash", "a\nb\tc", "$HOME `id` $(id) !!", "éß 中 🩺", "\\'", "'''", "\u0000", "\u00001.5", "\u0000\u0000x",
  "\ud800", "# no comment", "// nor this", "/* nor this */", "{}", "@file", "", " ", "\\u0041", '\\"', "1.10", "a;b|c&d>e",
];

test("a call becomes one curl command with its key and the token as a shell variable", () => {
  const variables = { patientId: "demo-patient", input: { brandId: "loop", encounterType: "OFFICE_VISIT" }, key: "k-1" };

  assert.equal(
    toRest(BY_VARIABLES, JSON.stringify(variables), BASE),
    `curl http://127.0.0.1:8000/v1/patients/demo-patient/encounters \\
  -H "Authorization: Bearer $TOKEN" \\
  -H 'Content-Type: application/json' \\
  -H 'Idempotency-Key: k-1' \\
  -d '{"brand_id":"loop","encounter_type":"office_visit"}'`,
  );
});

test("every member is renamed in both directions", () => {
  const input = {
    brandId: "loop",
    encounterType: "PHARMACY",
    providerId: "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    scheduledAt: "2026-03-29T02:30:00.5+01:00",
    chiefComplaint: "Sore throat",
    notes: "Slept well.",
    metadata: { brandId: "stays", brand_id: "stays", nested: [1, null, true, { notes: "x" }] },
  };
  const command = toRest(BY_VARIABLES, JSON.stringify({ patientId: "p", input }), BASE);

  assert.deepEqual(Object.keys(JSON.parse(body(command))), [
    "brand_id", "encounter_type", "provider_id", "scheduled_at", "chief_complaint", "notes", "metadata",
  ]);
  assert.deepEqual(JSON.parse(toGraphql(command).variables), { patientId: "p", input });
});

for (const text of SPECIAL_TEXTS) {
  test(`${JSON.stringify(text)} is unchanged in both directions and in a shell`, () => {
    const input = { brandId: "loop", encounterType: "LAB", notes: text, metadata: { [text]: [text] } };
    const variables = { patientId: text.toWellFormed() || "p", input, key: "k" };
    const command = toRest(BY_VARIABLES, JSON.stringify(variables), BASE);
    const back = toGraphql(command);

    assert.deepEqual(JSON.parse(back.variables), variables);
    assert.equal(toRest(back.query, back.variables, BASE), command);
    assert.deepEqual(byShell(command), words(command));
  });
}

for (const key of ["k", `"k"`, `"`, `""`, `"a\\"b"`, `"a\\b"`, "it's", `\\`]) {
  test(`the key ${key} is unchanged in both directions`, () => {
    const variables = { patientId: "p", input: { brandId: "loop", encounterType: "LAB" }, key };

    assert.deepEqual(JSON.parse(toGraphql(toRest(BY_VARIABLES, JSON.stringify(variables), BASE)).variables), variables);
  });
}

test("a quoted key is unquoted, as the gateway does", () => {
  const { variables } = toGraphql(`POST /v1/patients/p/encounters\nIdempotency-Key: "a\\"b"\n\n{}`);

  assert.equal(JSON.parse(variables).key, 'a"b');
});

test("a call without a key is converted without a key", () => {
  const command = inline('recordEncounter(patientId: "p", input: {brandId: "loop", encounterType: LAB})');

  assert.ok(!command.includes("Idempotency-Key"));
  assert.ok(!("key" in JSON.parse(toGraphql(command).variables)));
});

test("every digit of a number is kept, through variables and literals", () => {
  const digits = "[1.10,12345678901234567890,1E400,-0,0.1e-7]";
  const literal = `recordEncounter(patientId: 7, input: {brandId: "loop", encounterType: LAB, metadata: {a: ${digits}}})`;
  const variables = `{"patientId": "7", "input": {"brandId": "loop", "encounterType": "LAB", "metadata": {"a": ${digits}}}}`;

  for (const command of [inline(literal), toRest(BY_VARIABLES, variables, BASE)]) {
    assert.equal(body(command), `{"brand_id":"loop","encounter_type":"lab","metadata":{"a":${digits}}}`);
    const back = toGraphql(command);
    assert.equal(toRest(back.query, back.variables, BASE), command);
  }
});

test("literals, block strings, nested variables and defaults are read", () => {
  const query = `mutation ($id: ID! = "p", $note: String, $none: String) {
    recordEncounter(patientId: $id, input: {brandId: "loop", encounterType: LAB, notes: $note, providerId: $none,
      chiefComplaint: """
        two
        lines
      """, metadata: {list: [$note, null, true, 1]}}) { __typename }
  }`;
  const command = toRest(query, '{"note": "it\'s"}', BASE);

  assert.ok(command.includes("/v1/patients/p/encounters"));
  assert.deepEqual(JSON.parse(body(command)), {
    brand_id: "loop", encounter_type: "lab", notes: "it's", chief_complaint: "two\nlines",
    metadata: { list: ["it's", null, true, 1] },
  });
});

test("of several operations the named one is converted", () => {
  const query = `
    query Other { __typename }
    mutation A { recordEncounter(patientId: "a", input: {brandId: "loop", encounterType: LAB}) { __typename } }
    mutation B { recordEncounter(patientId: "b", input: {brandId: "loop", encounterType: LAB}) { __typename } }`;

  assert.ok(toRest(query, "", { ...BASE, operationName: "B" }).includes("/v1/patients/b/"));
  assert.throws(() => toRest(query, "", BASE), NotConvertible);
});

test("comments in variables are ignored", () => {
  const variables = `{ // who
    "patientId": "p", /* what */ "input": {"brandId": "loop", "encounterType": "LAB", "notes": "a // b"} }`;

  assert.equal(JSON.parse(body(toRest(BY_VARIABLES, variables, BASE))).notes, "a // b");
});

test("curl commands and HTTP requests in any form are parsed", () => {
  const written = [
    `curl http://h/v1/patients/p%20q/encounters -d '{"brand_id":"loop"}' -H 'Idempotency-Key: k'`,
    `$ curl -sS -X POST \\\n  -H "idempotency-key:k" \\\n  --data "{\\"brand_id\\": \\"loop\\"}" "http://h/v1/patients/p%20q/encounters"`,
    `curl -sXPOST 'http://h/v1/patients/p%20q/encounters?x=1' -HIdempotency-Key:\\ k -d'{"brand_id":"loop"}' | jq .id`,
    `curl 'http://h/v1/patients/p%20q/encounters' --compressed -H 'Idempotency-Key: k' --data-raw $'{"brand_id":"\\u006coop"}'; echo`,
    `curl --request POST --url http://h/v1/patients/p%20q/encounters --header 'Idempotency-Key: k' --json '{"brand_id":\n"loop"}' # x`,
    `curl "$GATEWAY/v1/patients/p%20q/encounters" --max-time 5 -o out -H 'Idempotency-Key: k' --data-binary '{"brand_id":"loop"}'`,
    `POST /v1/patients/p%20q/encounters HTTP/1.1\r\nIdempotency-Key: k\r\nContent-Type: application/json\r\n\r\n{"brand_id":"loop"}`,
    `  http://h/v1/patients/p%20q/encounters\nidempotency-key: k\n{\n "brand_id": "loop"\n}\n`,
  ];
  for (const text of written) {
    assert.deepEqual(JSON.parse(toGraphql(text).variables), { patientId: "p q", input: { brandId: "loop" }, key: "k" }, text);
  }
});

test("members that REST ignores are omitted and listed", () => {
  const { variables, ignored } = toGraphql('POST /v1/patients/p/encounters {"brand_id":"loop","x":1,"toString":2}');

  assert.deepEqual(JSON.parse(variables).input, { brandId: "loop" });
  assert.deepEqual(ignored, ["x", "toString"]);
});

for (const [text, why] of [
  ["", "path"],
  ['{"brand_id": "loop"}', "path"],
  ["curl http://h/v1/patients/p/encounters", "Only the call that records"],
  ["curl -G http://h/v1/patients/p/encounters -d '{}'", "Only the call that records"],
  ["curl -X PUT http://h/v1/patients/p/encounters -d '{}'", "Only the call that records"],
  ["curl http://h/v1/other -d '{}'", "path"],
  ["curl http://h/v1/patients/p/encounters -d @body.json", "file"],
  ["curl http://h/v1/patients/p/encounters -d '{}' -d '{}'", "once"],
  ["curl http://h/v1/patients/p/encounters -d '{", "quote"],
  ["curl http://h/v1/patients/p/encounters -d '{'", "not JSON"],
  ["curl http://h/v1/patients/p/encounters -d '[]'", "object"],
  ["curl http://h/v1/patients/%/encounters -d '{}'", "encoded"],
  ["POST /v1/patients/p/encounters", "not JSON"],
]) {
  test(`${JSON.stringify(text)} is refused with a reason`, () => {
    assert.throws(() => toGraphql(text), (error) => error instanceof NotConvertible && error.message.includes(why));
  });
}

for (const [query, variables, why] of [
  ["{ __typename }", "", "no recordEncounter"],
  ["mutation {", "", "cannot be read"],
  ["mutation { recordEncounter(input: {}) { __typename } }", "", "patientId"],
  ['mutation { recordEncounter(patientId: "p") { __typename } }', "", "input"],
  ['mutation { recordEncounter(patientId: "p", input: {nope: 1}) { __typename } }', "", "nope"],
  ['mutation { recordEncounter(patientId: "p", input: {}, idempotencyKey: 5) { __typename } }', "", "text"],
  [BY_VARIABLES, "{", "not JSON"],
  [BY_VARIABLES, "[]", "object"],
]) {
  test(`${query} with ${variables || "nothing"} is refused with a reason`, () => {
    assert.throws(() => toRest(query, variables, BASE), (error) => error instanceof NotConvertible && error.message.includes(why));
  });
}

test("JSON is serialized as it was parsed", () => {
  for (const text of ['{"a":[1.10,"\\u00005","\\"\\u00005",-1e5]}', '"\\u0000"', "1E+2", '{"\\u00001":"\\\\"}']) {
    assert.equal(write(read(text)), text);
  }
  for (const text of ["01", "1.", "-", "{", '{"a":1,}', "1 2", "'a'"]) assert.throws(() => read(text), SyntaxError, text);
});

test("validate_only is kept in both directions", () => {
  const literal = 'recordEncounter(patientId: "p", input: {brandId: "loop", encounterType: LAB}, validateOnly: true)';
  const command = inline(literal);

  assert.ok(command.startsWith(`curl '${BASE.base}/v1/patients/p/encounters?validate_only=true'`));
  const back = toGraphql(command);
  assert.equal(toRest(back.query, back.variables, BASE), command);
  assert.ok(!inline(literal.replace("true", "false")).includes("validate_only"));
  assert.throws(() => toGraphql(command.replace("=true", "=yes")), NotConvertible);
  assert.throws(() => inline(literal.replace("validateOnly", "other")), NotConvertible);
});

// The operations of the clients, and the output of their results.
export const RECORD = `mutation Record($patientId: ID!, $input: RecordEncounterInput!, $key: String) {
  recordEncounter(patientId: $patientId, input: $input, idempotencyKey: $key) {
    __typename
    ... on EncounterRecorded { replayed encounter { id status notes } }
    ... on Problem { code message recorded }
    ... on InvalidInput { violations { path rule } }
  }
}`;

export const PAGE = `query Page($patientId: ID!, $after: String) {
  patient(id: $patientId) {
    id
    encounters(first: 2, after: $after) { nodes { id } pageInfo { hasNextPage endCursor } }
  }
}`;

export const VISIT = { brandId: 'loop', encounterType: 'OFFICE_VISIT', notes: 'Slept well.' };

// Return the ids of every page; `ask` requests the page after a cursor.
export async function pages(ask) {
  const seen = [];
  let after = null;
  do {
    const { nodes, pageInfo } = (await ask(after)).patient.encounters;
    seen.push(nodes.map((node) => node.id));
    after = pageInfo.hasNextPage ? pageInfo.endCursor : null;
  } while (after);
  return seen;
}

export const printResults = (seen) => console.log(JSON.stringify(seen));

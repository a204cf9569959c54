// A worklist that follows the changes of its encounters, with a client of graphql-ws or graphql-sse.

export type Encounter = { id: string; version: number; status: string; scheduledAt: string | null };
type Answer = { data?: any; errors?: readonly { extensions?: any }[] };
export type Client = { iterate(request: { query: string; variables: Record<string, unknown> }): AsyncIterable<Answer> };

const FIELDS = "id version status scheduledAt";
const READ = `query ($where: EncountersFilter) {
  encounters(first: 100, where: $where, orderBy: SCHEDULED_AT_ASC) { feedCursor nodes { ${FIELDS} } }
}`;
const FOLLOW = `subscription ($where: EventsFilter, $after: String) {
  encounterEvents(where: $where, after: $after) { cursor encounter { ${FIELDS} } }
}`;

const time = (each: Encounter) => Date.parse(each.scheduledAt ?? "9999-12-31T00:00:00Z");

/** `where` has members that `EncountersFilter` and `EventsFilter` share; `belongs` is the rest of the filter. */
export async function followList(
  client: Client,
  where: { patientId?: string[]; providerId?: string[]; encounterType?: string[] },
  belongs: (encounter: Encounter) => boolean,
  show: (list: Encounter[]) => void,
): Promise<never> {
  let list = new Map<string, Encounter>();
  let after: string | null = null;
  const update = () => show([...list.values()].sort((one, other) => time(one) - time(other)));
  for (;;) {
    try {
      if (after === null) {
        for await (const { data, errors } of client.iterate({ query: READ, variables: { where } })) {
          if (errors) throw errors;
          after = data.encounters.feedCursor;
          list = new Map(data.encounters.nodes.filter(belongs).map((each: Encounter) => [each.id, each]));
          update();
        }
      }
      const variables: Record<string, unknown> = { where, after };
      for await (const { data, errors } of client.iterate({ query: FOLLOW, variables })) {
        if (errors) throw errors;
        const { cursor, encounter }: { cursor: string; encounter: Encounter } = data.encounterEvents;
        after = cursor;
        if (encounter.version < (list.get(encounter.id)?.version ?? 0)) continue; // the page was read later
        if (belongs(encounter)) list.set(encounter.id, encounter);
        else list.delete(encounter.id);
        update();
      }
    } catch (problem) {
      const { code, violations } = (problem as Answer["errors"])?.[0]?.extensions ?? {};
      if (violations?.[0]?.rule === "cursor_expired") after = null; // read the list again
      else if (["validation_error", "insufficient_scope", "forbidden"].includes(code)) throw problem;
    }
    await new Promise((resolve) => setTimeout(resolve, 200 + 800 * Math.random()));
  }
}

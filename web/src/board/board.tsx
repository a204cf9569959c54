// The day of a brand: tiles with counts, filters, and the encounters by provider and time, live.

import { useCallback, useEffect, useMemo, useRef, useState } from "react";
import { reasonOf } from "./client";
import { EncounterCard, UnsentRecording } from "./card";
import { useEvents } from "./live";
import {
  CountsDocument,
  DayDocument,
  type CardFragment,
  type EncountersFilter,
  type EncounterStatus,
  type EncounterType,
} from "./operations";
import { useRead } from "./read";
import { RecordDialog } from "./record";
import { Search } from "./search";
import { useSession } from "./session";
import { Timeline } from "./timeline";
import { Waiting } from "./waiting";
import { dayOf, providerName, startOf, STATUSES, TYPES, zone } from "./words";

/** Milliseconds between two reads of the lists while events arrive. */
const REREAD_MS = 1_000;

const STATUS_NAMES = Object.keys(STATUSES) as EncounterStatus[];

export function Board() {
  const { brandId, can, unsent } = useSession();
  const [day, setDay] = useState(dayOf(new Date()));
  const [providerId, setProviderId] = useState("");
  const [encounterType, setEncounterType] = useState<EncounterType | "">("");
  const [status, setStatus] = useState<EncounterStatus | "">("");
  const [pages, setPages] = useState<string[]>([]);
  const [patientId, setPatientId] = useState<string>();
  const [live, setLive] = useState<"live" | "lost" | "expired" | "opening">("opening");

  const span = useMemo(
    () => ({ scheduledFrom: startOf(day).toISOString(), scheduledUntil: startOf(day, 1).toISOString() }),
    [day],
  );
  const shown = useMemo<EncountersFilter>(
    () => ({
      ...span,
      ...(providerId && { providerId: [providerId] }),
      ...(encounterType && { encounterType: [encounterType] }),
    }),
    [span, providerId, encounterType],
  );
  const where = useMemo(() => ({ ...shown, ...(status && { status: [status] }) }), [shown, status]);
  useEffect(() => setPages([]), [where]);

  const list = useRead(DayDocument, { where, after: pages.at(-1) });
  const counts = useRead(CountsDocument, { tiles: shown, day: span });
  const reread = useReread(() => {
    list.again();
    counts.again();
  });
  const connection = list.data?.encounters;
  const [from, setFrom] = useState<string>();
  if (from === undefined && connection && !list.fetching) setFrom(connection.feedCursor);
  const listed = ({ id, scheduledAt }: CardFragment) =>
    connection?.nodes.some((each) => each.id === id) || (scheduledAt !== null && dayOf(new Date(scheduledAt)) === day);
  useEvents(
    from,
    {},
    // The cache has applied the encounter to the cards. The order, the counts and new encounters need the gateway.
    ({ encounter }) => listed(encounter) && reread(),
    (state) => {
      setLive(state);
      if (state !== "expired") return;
      // The gateway has deleted events after the cursor. Start again from a new list.
      setFrom(undefined);
      list.again();
    },
  );
  // An outcome of this board's own changes arrives before its event.
  useEffect(reread, [unsent.length, reread]);

  const columns = columnsOf(connection?.nodes ?? []);
  const recordings = unsent.filter(({ name }) => name === "Record");
  const error = list.error ?? counts.error;
  const providers = counts.data?.providers ?? [];

  return (
    <>
      <div className="toolbar">
        <h1>
          {startOf(day).toLocaleDateString(undefined, { weekday: "long", day: "numeric", month: "long" })}
          <small>
            {brandId}, times in {zone}
          </small>
        </h1>
        <div className="days" role="group" aria-label="Day">
          <button type="button" className="quiet" aria-label="Previous day" onClick={() => setDay(dayOf(startOf(day, -1)))}>
            ←
          </button>
          <input type="date" aria-label="Day" value={day} onChange={({ target }) => target.value && setDay(target.value)} />
          <button type="button" className="quiet" aria-label="Next day" onClick={() => setDay(dayOf(startOf(day, 1)))}>
            →
          </button>
          <button type="button" className="quiet" onClick={() => setDay(dayOf(new Date()))}>
            Today
          </button>
        </div>
        <Search onPatient={setPatientId} />
        {can.includes("RECORD_ENCOUNTER") && <RecordDialog day={day} />}
      </div>

      <div className="tiles" role="group" aria-label="Encounters of the day by status">
        {STATUS_NAMES.map((name) => (
          <button
            key={name}
            type="button"
            className="tile"
            data-status={name}
            aria-pressed={status === name}
            onClick={() => setStatus(status === name ? "" : name)}
          >
            <b>{counts.data?.statuses.find(({ key }) => key === name)?.count ?? 0}</b> {STATUSES[name]}
          </button>
        ))}
      </div>

      <div className="filters">
        <label>
          Provider
          <select value={providerId} onChange={({ target }) => setProviderId(target.value)}>
            <option value="">All providers</option>
            {[...new Set([providerId, ...providers.map(({ key }) => key)])].filter(Boolean).map((key) => (
              <option key={key} value={key!}>
                {providerName(key)}
              </option>
            ))}
          </select>
        </label>
        <label>
          Type
          <select value={encounterType} onChange={({ target }) => setEncounterType(target.value as EncounterType | "")}>
            <option value="">All types</option>
            {Object.entries(TYPES).map(([name, text]) => (
              <option key={name} value={name}>
                {text}
              </option>
            ))}
          </select>
        </label>
        <p className="state" role="status" data-live={live}>
          {live === "live" ? "Live" : live === "opening" ? "Connecting…" : "Not connected: the board may be out of date"}
        </p>
      </div>

      <Waiting />
      {error && (
        <p className="wrong" role="alert">
          {reasonOf(error)}
        </p>
      )}

      <div className="columns" aria-busy={list.fetching}>
        {recordings.length > 0 && (
          <section aria-label="Not sent yet">
            <h2>Not sent yet</h2>
            {recordings.map((change) => (
              <UnsentRecording key={change.key} change={change} />
            ))}
          </section>
        )}
        {columns.map(([provider, encounters]) => (
          <section key={provider ?? ""} aria-label={providerName(provider)}>
            <h2 title={provider ?? undefined}>
              {providerName(provider)} <small>{encounters.length}</small>
            </h2>
            {encounters.map((encounter) => (
              <EncounterCard key={encounter.id} encounter={encounter} onPatient={setPatientId} />
            ))}
          </section>
        ))}
      </div>
      {connection && connection.nodes.length === 0 && recordings.length === 0 && (
        <p className="empty">No encounters are scheduled for this day{where === span ? "" : " with these filters"}.</p>
      )}
      {connection && (connection.pageInfo.hasNextPage || pages.length > 0) && (
        <nav className="pages" aria-label="Pages of the day">
          <button type="button" className="quiet" disabled={!pages.length} onClick={() => setPages(pages.slice(0, -1))}>
            Previous 100
          </button>
          <span>
            {connection.totalCountIsExact ? "" : "more than "}
            {connection.totalCount} encounters
          </span>
          <button
            type="button"
            className="quiet"
            disabled={!connection.pageInfo.hasNextPage}
            onClick={() => setPages([...pages, connection.pageInfo.endCursor!])}
          >
            Next 100
          </button>
        </nav>
      )}
      {patientId !== undefined && <Timeline patientId={patientId} onClose={() => setPatientId(undefined)} />}
    </>
  );
}

/** Return a function that calls `read` soon, at most once in `REREAD_MS`. */
function useReread(read: () => void): () => void {
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  const latest = useRef(read);
  useEffect(() => {
    latest.current = read;
  });
  useEffect(() => () => clearTimeout(timer.current), []);
  return useCallback(() => {
    timer.current ??= setTimeout(() => {
      timer.current = undefined;
      latest.current();
    }, REREAD_MS);
  }, []);
}

/** Return the encounters by provider, in the order of the list. */
function columnsOf(encounters: readonly CardFragment[]): [string | null, CardFragment[]][] {
  const columns = new Map<string | null, CardFragment[]>();
  for (const encounter of encounters) {
    const column = columns.get(encounter.providerId);
    if (column) column.push(encounter);
    else columns.set(encounter.providerId, [encounter]);
  }
  return [...columns];
}

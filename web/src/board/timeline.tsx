// The encounters of a patient, latest first, read page by page while scrolling; each with its details and history.

import { useEffect, useRef, useState } from "react";
import { EncounterCard } from "./card";
import { reasonOf } from "./client";
import { DetailsDocument, TimelineDocument } from "./operations";
import { useRead } from "./read";
import { Sheet } from "./sheet";
import { dateTimeOf } from "./words";

export function Timeline({ patientId, onClose }: { patientId: string; onClose: () => void }) {
  const [pages, setPages] = useState<(string | undefined)[]>([undefined]);
  return (
    <Sheet title={`Patient ${patientId}`} className="side-sheet" onClose={onClose}>
      {pages.map((after, number) => (
        <Page
          key={after ?? ""}
          patientId={patientId}
          after={after}
          onMore={number === pages.length - 1 ? (cursor) => setPages([...pages, cursor]) : undefined}
        />
      ))}
    </Sheet>
  );
}

function Page({
  patientId,
  after,
  onMore,
}: {
  patientId: string;
  after: string | undefined;
  onMore: ((cursor: string) => void) | undefined;
}) {
  const { data, error, fetching } = useRead(TimelineDocument, { patientId, after });
  const list = data?.patient?.encounters;
  const next = list?.pageInfo.hasNextPage ? list.pageInfo.endCursor : null;
  return (
    <>
      {error && (
        <p className="wrong" role="alert">
          {reasonOf(error)}
        </p>
      )}
      {data && !data.patient && <p>This brand has no such patient.</p>}
      {list?.nodes.length === 0 && !after && <p>No encounters are recorded.</p>}
      {list?.nodes.map((encounter) => (
        <div key={encounter.id} className="entry">
          <EncounterCard encounter={encounter} />
          <Details id={encounter.id} patientId={encounter.patientId} />
        </div>
      ))}
      {fetching && !data && <p>Reading…</p>}
      {onMore && next && <More onVisible={() => onMore(next)} />}
    </>
  );
}

/** A button that is pressed by itself when it is scrolled into view. */
function More({ onVisible }: { onVisible: () => void }) {
  const button = useRef<HTMLButtonElement>(null);
  const act = useRef(onVisible);
  useEffect(() => {
    act.current = onVisible;
  });
  useEffect(() => {
    const observer = new IntersectionObserver(([entry]) => entry?.isIntersecting && act.current());
    observer.observe(button.current!);
    return () => observer.disconnect();
  }, []);
  return (
    <button ref={button} type="button" className="quiet" onClick={onVisible}>
      More
    </button>
  );
}

function Details(of: { id: string; patientId: string }) {
  const [open, setOpen] = useState(false);
  return (
    <details onToggle={({ currentTarget }) => setOpen(currentTarget.open)}>
      <summary>Notes and history</summary>
      {open && <History {...of} />}
    </details>
  );
}

function History(of: { id: string; patientId: string }) {
  const { data, error } = useRead(DetailsDocument, of);
  if (!data?.encounter) return error ? <p className="wrong">{reasonOf(error)}</p> : <p>Reading…</p>;
  return (
    <>
      <p className="notes">{data.encounter.notes ?? "No notes."}</p>
      <ol className="history">
        {data.encounter.history.map(({ version, kind, changedAt, changedBy, reason, changes }) => (
          <li key={version}>
            <b>{kind.toLowerCase().replaceAll("_", " ")}</b> {dateTimeOf(changedAt)}, by {changedBy}
            {reason && <>: {reason}</>}
            {version > 1 && <small> {changes.map(({ member }) => member).join(", ")}</small>}
          </li>
        ))}
      </ol>
    </>
  );
}

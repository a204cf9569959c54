// Find a patient by id, or patients and encounters by an external id.

import { useState } from "react";
import { useQuery } from "urql";
import { EncounterCard } from "./card";
import { reasonOf } from "./client";
import { FindDocument } from "./operations";
import { Sheet } from "./sheet";

interface Asked {
  system: string;
  value: string;
}

export function Search({ onPatient }: { onPatient: (patientId: string) => void }) {
  const [open, setOpen] = useState(false);
  const [asked, setAsked] = useState<Asked>();
  const close = () => {
    setOpen(false);
    setAsked(undefined);
  };
  const show = (patientId: string) => {
    close();
    onPatient(patientId);
  };

  return (
    <>
      <button type="button" className="quiet" onClick={() => setOpen(true)}>
        Find
      </button>
      {open && (
        <Sheet title="Find" onClose={close}>
          <form className="row" action={(form) => show(String(form.get("patientId")).trim())}>
            <label>
              Patient id
              <input name="patientId" required maxLength={200} autoComplete="off" />
            </label>
            <button type="submit" className="quiet">
              Open
            </button>
          </form>
          <form
            className="row"
            onSubmit={(event) => {
              event.preventDefault();
              const form = new FormData(event.currentTarget);
              setAsked({ system: String(form.get("system")).trim(), value: String(form.get("value")).trim() });
            }}
          >
            <label>
              System
              <input name="system" required maxLength={200} autoComplete="off" />
            </label>
            <label>
              External id
              <input name="value" required maxLength={200} autoComplete="off" />
            </label>
            <button type="submit" className="quiet">
              Search
            </button>
          </form>
          {asked && <Found asked={asked} onPatient={show} />}
        </Sheet>
      )}
    </>
  );
}

function Found({ asked, onPatient }: { asked: Asked; onPatient: (patientId: string) => void }) {
  const [{ data, error, fetching }] = useQuery({
    query: FindDocument,
    variables: { ...asked },
    requestPolicy: "network-only",
  });
  const patients = data?.patientsByExternalId ?? [];
  const encounters = data?.encountersByExternalId ?? [];
  return (
    <div role="status" className="found">
      {fetching && <p>Searching…</p>}
      {error && <p className="wrong">{reasonOf(error)}</p>}
      {data && <p>{patients.length + encounters.length || "Nothing"} found.</p>}
      {patients.map(({ id }) => (
        <button key={id} type="button" className="link" onClick={() => onPatient(id)}>
          Patient {id}
        </button>
      ))}
      {encounters.map((encounter) => (
        <EncounterCard key={encounter.id} encounter={encounter} onPatient={onPatient} />
      ))}
    </div>
  );
}

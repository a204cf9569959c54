// The dialog that records an encounter.

import { useState } from "react";
import { development } from "../development.js";
import type { EncounterType } from "./operations";
import { useSession } from "./session";
import { Sheet } from "./sheet";
import { dayOf, localOf, startOf, TYPES } from "./words";

const UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}";

export function RecordDialog({ day }: { day: string }) {
  const { brandId, outbox } = useSession();
  const [open, setOpen] = useState(false);
  const known = (development as { brand: string; patient: string }[]).find(({ brand }) => brand === brandId);

  function submit(form: FormData) {
    const text = (name: string) => String(form.get(name)).trim();
    const optional = (name: string, value = text(name)) => (value ? { [name]: value } : {});
    void outbox.make("Record", {
      patientId: text("patientId"),
      input: {
        brandId,
        encounterType: text("encounterType") as EncounterType,
        scheduledAt: new Date(text("time")).toISOString(),
        ...optional("providerId"),
        ...optional("chiefComplaint"),
        ...optional("notes"),
      },
    });
    setOpen(false);
  }

  return (
    <>
      <button type="button" className="button" onClick={() => setOpen(true)}>
        Record
      </button>
      {open && (
        <Sheet title="Record an encounter" onClose={() => setOpen(false)}>
          <form action={submit}>
            <label>
              Patient id
              <input name="patientId" required maxLength={200} autoComplete="off" defaultValue={known?.patient} />
            </label>
            <label>
              Type
              <select name="encounterType">
                {Object.entries(TYPES).map(([name, label]) => (
                  <option key={name} value={name}>
                    {label}
                  </option>
                ))}
              </select>
            </label>
            <label>
              Time
              <input type="datetime-local" name="time" required defaultValue={defaultTime(day)} />
            </label>
            <label>
              Provider id (optional)
              <input name="providerId" pattern={UUID} title="A UUID" autoComplete="off" />
            </label>
            <label>
              Chief complaint (optional)
              <input name="chiefComplaint" maxLength={500} autoComplete="off" />
            </label>
            <label>
              Notes (optional)
              <textarea name="notes" rows={4} maxLength={10_000} autoComplete="off" />
            </label>
            <button type="submit" className="button">
              Record
            </button>
          </form>
        </Sheet>
      )}
    </>
  );
}

/** Return the next quarter of an hour today, and nine o'clock on another day. */
function defaultTime(day: string): string {
  const now = new Date();
  const time = startOf(day);
  if (dayOf(now) === day) time.setHours(now.getHours(), Math.ceil((now.getMinutes() + 1) / 15) * 15);
  else time.setHours(9);
  return localOf(time);
}

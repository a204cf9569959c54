// The dialog for an action that needs a reason or a time.

import type { CardFragment } from "./operations";
import { useSession } from "./session";
import { Sheet } from "./sheet";
import { type BoardAction, localOf, titleOf } from "./words";

type Asking = Exclude<BoardAction, "START" | "COMPLETE">;

/** The mutation of each action, the text of its button, and whether the gateway requires a reason. */
const ASKED = {
  CANCEL: ["Cancel", "Cancel the encounter", false],
  MARK_NO_SHOW: ["MarkNoShow", "Mark as no show", false],
  MARK_ENTERED_IN_ERROR: ["MarkEnteredInError", "Mark as entered in error", true],
  UNDO_START: ["UndoStart", "Undo the start", true],
  RESCHEDULE: ["Reschedule", "Reschedule", false],
} as const satisfies Record<Asking, readonly [string, string, boolean]>;

export function ActionDialog({
  action,
  encounter,
  onClose,
}: {
  action: BoardAction;
  encounter: CardFragment;
  onClose: () => void;
}) {
  const { outbox } = useSession();
  const [mutation, text, needsReason] = ASKED[action as Asking];

  function submit(form: FormData) {
    const reason = String(form.get("reason")).trim();
    const target = { id: encounter.id, patientId: encounter.patientId, version: encounter.version };
    if (mutation === "Reschedule")
      void outbox.make(mutation, {
        ...target,
        ...(reason && { reason }),
        scheduledAt: new Date(String(form.get("time"))).toISOString(),
      });
    else if (mutation === "UndoStart" || mutation === "MarkEnteredInError") void outbox.make(mutation, { ...target, reason });
    else void outbox.make(mutation, { ...target, ...(reason && { reason }) });
    onClose();
  }

  return (
    <Sheet title={`${text}: ${titleOf(encounter)}`} onClose={onClose}>
      <form action={submit}>
        {mutation === "Reschedule" && (
          <label>
            New time
            <input
              type="datetime-local"
              name="time"
              required
              defaultValue={localOf(encounter.scheduledAt ? new Date(encounter.scheduledAt) : new Date())}
            />
          </label>
        )}
        <label>
          {needsReason ? "Reason" : "Reason (optional)"}
          <input name="reason" required={needsReason} pattern={needsReason ? ".*\\S.*" : undefined} maxLength={500} autoComplete="off" />
        </label>
        <button type="submit" className="button">
          {text}
        </button>
      </form>
    </Sheet>
  );
}

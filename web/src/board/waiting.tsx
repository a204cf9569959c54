// What is not sent yet, and why.

import { useEffect } from "react";
import { askForToken } from "../authorize.js";
import { useSession } from "./session";
import { durable } from "./vault";

/** Texts of the mutations. */
const NAMES: Record<string, string> = {
  Record: "Record",
  Start: "Start",
  UndoStart: "Undo start",
  Complete: "Complete",
  Cancel: "Cancel",
  MarkNoShow: "No show",
  MarkEnteredInError: "Entered in error",
  Reschedule: "Reschedule",
};

const REASONS = {
  waiting: "waits for the gateway",
  stopped: "needs another sign-in",
  old: "is too old to be sent safely; check whether it was made, and make it again",
};

export function Waiting() {
  const { outbox, unsent } = useSession();

  useEffect(() => {
    if (unsent.length === 0 || durable) return;
    const warn = (event: BeforeUnloadEvent) => event.preventDefault();
    addEventListener("beforeunload", warn);
    return () => removeEventListener("beforeunload", warn);
  }, [unsent.length]);

  return (
    <div role="status">
      {unsent.length > 0 && (
        <div className="waiting">
          <p>
            <b>{unsent.length === 1 ? "1 change is" : `${unsent.length} changes are`} not sent yet.</b>{" "}
            {durable
              ? "They are stored in this browser, encrypted, and sent once the gateway answers, also after a reload."
              : "They are lost if you reload: this page was not loaded over HTTPS."}
          </p>
          <ul>
            {unsent.map(({ key, name, state, madeAt }) => (
              <li key={key}>
                {NAMES[name]}, made at {new Date(madeAt).toLocaleTimeString()}, {REASONS[state]}{" "}
                {state === "stopped" && (
                  <button type="button" className="link" onClick={askForToken}>
                    Authorize
                  </button>
                )}
                {state === "old" && (
                  <button type="button" className="link" onClick={() => outbox.discard(key)}>
                    Discard
                  </button>
                )}
              </li>
            ))}
          </ul>
        </div>
      )}
    </div>
  );
}

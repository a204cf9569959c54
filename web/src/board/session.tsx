// The sign-in as the components use it: the client, the outbox and the person.

import { createContext, type ReactNode, use, useEffect, useState, useSyncExternalStore } from "react";
import { Provider } from "urql";
import { askForToken } from "../authorize.js";
import { base } from "../base.js";
import { currentToken, whenTokenChanges } from "../token.js";
import { clientFor, reasonOf } from "./client";
import { type Operation, ViewerDocument } from "./operations";
import { type Outcome, Outbox, type Unsent } from "./outbox";

export interface Session {
  brandId: string;
  can: readonly Operation[];
  outbox: Outbox;
  unsent: readonly Unsent[];
}

const SessionContext = createContext<Session | undefined>(undefined);

/** Return the sign-in. Throws Error outside `SignedIn`. */
export function useSession(): Session {
  const session = use(SessionContext);
  if (!session) throw new Error("There is no session here.");
  return session;
}

type Opened = { client: ReturnType<typeof clientFor>["client"] } & Omit<Session, "unsent">;

/** Shows its children to a caller with a token of one brand, and otherwise what is missing. */
export function SignedIn({ report, children }: { report: (outcome: Outcome) => void; children: ReactNode }) {
  const token = useSyncExternalStore(whenTokenChanges, currentToken);
  const [opened, setOpened] = useState<Opened>();
  const [problem, setProblem] = useState("");

  useEffect(() => {
    setOpened(undefined);
    setProblem("");
    if (!token) return;
    let left = false;
    const { client, end } = clientFor(token);
    void client
      .query(ViewerDocument, {})
      .toPromise()
      .then(({ data, error }) => {
        if (left) return;
        if (error) return setProblem(reasonOf(error));
        const { brandId, clientId, userId, can } = data!.viewer;
        if (brandId === null) return setProblem("This token is of no brand. The board shows the day of one brand.");
        // Gateways below other paths of this origin share the storage, and not the changes.
        const path = new URL(base).pathname;
        const owner = [brandId, clientId, userId, ...(path === "/" ? [] : [path])];
        const outbox = new Outbox(client, JSON.stringify(owner), report);
        void outbox.resume();
        setOpened({ client, brandId, can, outbox });
      });
    return () => {
      left = true;
      end();
    };
  }, [token, report]);

  if (!token || problem)
    return (
      <section className="empty">
        <h1>The day of a clinic</h1>
        <p role={problem ? "alert" : undefined}>{problem || "Authorize to see the encounters of a brand."}</p>
        <button type="button" className="button" onClick={askForToken}>
          Authorize
        </button>
      </section>
    );
  if (!opened) return <p className="empty">Reading…</p>;
  return (
    <Provider value={opened.client}>
      <WithOutbox opened={opened}>{children}</WithOutbox>
    </Provider>
  );
}

function WithOutbox({ opened, children }: { opened: Opened; children: ReactNode }) {
  const unsent = useSyncExternalStore(opened.outbox.subscribe, opened.outbox.list);
  return <SessionContext value={{ ...opened, unsent }}>{children}</SessionContext>;
}

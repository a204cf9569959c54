// The page `/board`.

import { Toast } from "radix-ui";
import { StrictMode, useCallback, useState } from "react";
import { createRoot } from "react-dom/client";
import "../authorize.js";
import "./board.css";
import { Board } from "./board";
import type { Outcome } from "./outbox";
import { SignedIn } from "./session";

/** Seconds until a refusal disappears by itself; it stays while it has the focus or the pointer. */
const REFUSAL_SECONDS = 60;

function Page() {
  const [refusals, setRefusals] = useState<{ number: number; message: string }[]>([]);
  const report = useCallback(({ made, message }: Outcome) => {
    if (!made) setRefusals((shown) => [...shown, { number: (shown.at(-1)?.number ?? 0) + 1, message }]);
  }, []);

  return (
    <Toast.Provider duration={REFUSAL_SECONDS * 1_000} label="Refusal">
      <main>
        <SignedIn report={report}>
          <Board />
        </SignedIn>
      </main>
      {refusals.map(({ number, message }) => (
        <Toast.Root
          key={number}
          className="toast"
          onOpenChange={(open) => !open && setRefusals((shown) => shown.filter((each) => each.number !== number))}
        >
          <Toast.Title>The change was not made</Toast.Title>
          <Toast.Description>{message}</Toast.Description>
          <Toast.Close className="quiet">Close</Toast.Close>
        </Toast.Root>
      ))}
      <Toast.Viewport className="toasts" />
    </Toast.Provider>
  );
}

createRoot(document.querySelector("#board")!).render(
  <StrictMode>
    <Page />
  </StrictMode>,
);

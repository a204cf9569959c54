// One encounter of the day with a button for each action that the gateway allows the caller.

import { DropdownMenu } from "radix-ui";
import { useState } from "react";
import { ActionDialog } from "./action";
import type { CardFragment } from "./operations";
import { type Unsent } from "./outbox";
import { useSession } from "./session";
import { ACTIONS, type BoardAction, dateTimeOf, STATUSES, timeOf, titleOf, TYPES } from "./words";

/** Actions that need no further input. */
const AT_ONCE = { START: "Start", COMPLETE: "Complete" } as const;

const isAtOnce = (action: BoardAction): action is keyof typeof AT_ONCE => action in AT_ONCE;

export function EncounterCard({
  encounter,
  onPatient,
}: {
  encounter: CardFragment;
  onPatient?: (patientId: string) => void;
}) {
  const { outbox, unsent } = useSession();
  const [asked, setAsked] = useState<BoardAction>();
  const change = unsent.find(({ variables }) => variables["id"] === encounter.id);
  const allowed = (Object.keys(ACTIONS) as BoardAction[]).filter((each) => encounter.allowedActions.includes(each));
  const [first] = allowed.filter(isAtOnce);
  const more = allowed.filter((each) => each !== first);
  const act = (action: BoardAction) =>
    isAtOnce(action)
      ? void outbox.make(AT_ONCE[action], { id: encounter.id, patientId: encounter.patientId, version: encounter.version })
      : setAsked(action);

  return (
    <article className="card" data-status={encounter.status} aria-label={titleOf(encounter)}>
      <header>
        <time dateTime={encounter.scheduledAt ?? undefined}>
          {onPatient ? timeOf(encounter.scheduledAt) : dateTimeOf(encounter.scheduledAt)}
        </time>
        <span className="badge">{STATUSES[encounter.status]}</span>
      </header>
      {onPatient && (
        <button type="button" className="link" onClick={() => onPatient(encounter.patientId)}>
          {encounter.patientId}
        </button>
      )}
      <p>
        {TYPES[encounter.encounterType]}
        {encounter.chiefComplaint && <>: {encounter.chiefComplaint}</>}
      </p>
      {change ? (
        <p className="unsent">{change.state === "waiting" ? "Sending…" : "Not sent"}</p>
      ) : (
        allowed.length > 0 && (
          <footer>
            {first && (
              <button type="button" className="quiet" onClick={() => act(first)}>
                {ACTIONS[first]}
              </button>
            )}
            {more.length > 0 && (
              <DropdownMenu.Root modal={false}>
                <DropdownMenu.Trigger className="quiet" aria-label={`More actions for ${titleOf(encounter)}`}>
                  More
                </DropdownMenu.Trigger>
                <DropdownMenu.Portal>
                  <DropdownMenu.Content className="menu" align="end" sideOffset={4} collisionPadding={8}>
                    {more.map((action) => (
                      <DropdownMenu.Item key={action} onSelect={() => act(action)}>
                        {ACTIONS[action]}
                      </DropdownMenu.Item>
                    ))}
                  </DropdownMenu.Content>
                </DropdownMenu.Portal>
              </DropdownMenu.Root>
            )}
          </footer>
        )
      )}
      {asked && <ActionDialog action={asked} encounter={encounter} onClose={() => setAsked(undefined)} />}
    </article>
  );
}

/** A recording that the gateway has not confirmed. */
export function UnsentRecording({ change }: { change: Unsent }) {
  const { patientId, input } = change.variables as {
    patientId: string;
    input: { encounterType: keyof typeof TYPES; scheduledAt?: string };
  };
  return (
    <article className="card" aria-label={`Not sent: ${patientId}`}>
      <header>
        <time dateTime={input.scheduledAt}>{dateTimeOf(input.scheduledAt ?? null)}</time>
        <span className="badge">{change.state === "waiting" ? "Sending…" : "Not sent"}</span>
      </header>
      <p>
        {patientId}, {TYPES[input.encounterType]}
      </p>
    </article>
  );
}

// The changes that a person made and whose outcome is not known yet. Each is stored before it is sent.

import type { AnyVariables, Client, CombinedError, TypedDocumentNode } from "@urql/core";
import { codeOf, isTemporary, reasonOf } from "./client";
import * as operations from "./operations";
import { type Change, remove, store, stored } from "./vault";

/** Mutations by their names. Each takes the idempotency key as `key`. */
export const MUTATIONS = {
  Record: operations.RecordDocument,
  Start: operations.StartDocument,
  UndoStart: operations.UndoStartDocument,
  Complete: operations.CompleteDocument,
  Cancel: operations.CancelDocument,
  MarkNoShow: operations.MarkNoShowDocument,
  MarkEnteredInError: operations.MarkEnteredInErrorDocument,
  Reschedule: operations.RescheduleDocument,
};

export type Mutation = keyof typeof MUTATIONS;
type Given<Document> = Document extends TypedDocumentNode<unknown, infer Variables> ? Variables : never;
export type Variables<Name extends Mutation> = Omit<Given<(typeof MUTATIONS)[Name]>, "key">;

/** The gateway deletes idempotency keys after seven days by default. An older change could be made twice. */
export const SENT_WITHIN_MS = 6 * 24 * 3_600_000;

/** The state of a change: `waiting` for an answer, `stopped` by the sign-in, or too `old` to be sent safely. */
export interface Unsent extends Change {
  state: "waiting" | "stopped" | "old";
}

/** What became of a change. */
export interface Outcome {
  made: boolean;
  name: string;
  variables: Record<string, unknown>;
  /** For the person; empty if the change was made. */
  message: string;
}

interface Result {
  __typename: string;
  message?: string;
  recorded?: string;
  violations?: { path: string[]; message: string }[];
}

const newKey = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export class Outbox {
  private unsent: readonly Unsent[] = [];
  private readonly listeners = new Set<() => void>();

  /**
   * @param client - sends the changes; it retries while the gateway cannot be reached
   * @param owner - brand, client and person of the sign-in, and the path of the gateway unless it is the root
   * @param report - is called with the outcome of each change
   */
  constructor(
    private readonly client: Client,
    private readonly owner: string,
    private readonly report: (outcome: Outcome) => void,
  ) {}

  /** Send the changes that an earlier page of this owner left. */
  async resume(): Promise<void> {
    const left = await stored(this.owner);
    const known = new Set(this.unsent.map(({ key }) => key));
    for (const change of left.filter(({ key }) => !known.has(key))) void this.send(change);
  }

  /** Store a change, send it, and report its outcome. */
  async make<Name extends Mutation>(name: Name, variables: Variables<Name>): Promise<void> {
    const change = { key: newKey(), name, variables: { ...variables }, madeAt: Date.now(), owner: this.owner };
    await store(change);
    await this.send(change);
  }

  /** Delete a change that is not sent any more. */
  discard(key: string): void {
    this.forget(key);
    void remove(key);
  }

  readonly subscribe = (listener: () => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  readonly list = () => this.unsent;

  private async send(change: Change): Promise<void> {
    const old = Date.now() - change.madeAt > SENT_WITHIN_MS;
    this.remember({ ...change, state: old ? "old" : "waiting" });
    if (old) return;
    const document = MUTATIONS[change.name as Mutation] as TypedDocumentNode<Record<string, Result>, AnyVariables>;
    const { data, error } = await this.client.mutation(document, { ...change.variables, key: change.key }).toPromise();
    const result = data && Object.values(data).find((value) => typeof value === "object");
    if (!result && error && !isFinal(error)) {
      this.remember({ ...change, state: "stopped" });
      return;
    }
    // Reported first: a page that closes in between sends the change again, and the key makes that harmless.
    this.report({ ...outcomeOf(result, error), name: change.name, variables: change.variables });
    this.forget(change.key);
    await remove(change.key);
  }

  private remember(entry: Unsent): void {
    this.set([...this.unsent.filter(({ key }) => key !== entry.key), entry]);
  }

  private forget(key: string): void {
    this.set(this.unsent.filter((entry) => entry.key !== key));
  }

  private set(unsent: readonly Unsent[]): void {
    this.unsent = unsent;
    this.listeners.forEach((listener) => listener());
  }
}

/** Whether an error says what became of the change. Otherwise the change stays in the outbox. */
const isFinal = (error: CombinedError) =>
  !isTemporary(error) && !["unauthenticated", "invalid_token"].includes(String(codeOf(error)));

function outcomeOf(result: Result | null | undefined, error: CombinedError | undefined) {
  if (result?.__typename === "EncounterRecorded" || result?.__typename === "EncounterChanged")
    return { made: true, message: "" };
  const faults = result?.violations?.map(({ path, message }) => `${path.at(-1)} ${message}`).join("; ");
  return { made: false, message: faults || result?.message || (error ? reasonOf(error) : "The answer was empty.") };
}

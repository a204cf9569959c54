// Recordings that wait for a connection: encrypted at rest, each with the idempotency key of one action of the user.

export type Recording = { key: string; madeAt: number; patientId: string; input: Record<string, unknown> };
export type Outcome = "recorded" | "refused" | "later";

type Sealed = { iv: Uint8Array<ArrayBuffer>; data: ArrayBuffer };
/** An IndexedDB object store with `autoIncrement`: `all` returns the entries in the order in which they were added. */
export interface Store {
  add(sealed: Sealed): Promise<unknown>;
  all(): Promise<{ id: number; sealed: Sealed }[]>;
  delete(id: number): Promise<void>;
}

/** IndexedDB can keep this key, and no script can read it. Delete it when the user signs out. */
export const newKey = () =>
  crypto.subtle.generateKey({ name: "AES-GCM", length: 256 }, false, ["encrypt", "decrypt"]);

export class OfflineQueue {
  constructor(
    private readonly store: Store,
    private readonly secret: CryptoKey,
    // Less than GATEWAY_IDEMPOTENCY_HOURS: afterwards the gateway no longer knows the key.
    private readonly maxAgeMs = 24 * 3600 * 1000,
  ) {}

  /** Call once for each action, before the first attempt to send it. */
  async add(patientId: string, input: Recording["input"]): Promise<void> {
    const recording: Recording = { key: crypto.randomUUID(), madeAt: Date.now(), patientId, input };
    const iv = crypto.getRandomValues(new Uint8Array(12));
    const plain = new TextEncoder().encode(JSON.stringify(recording));
    await this.store.add({ iv, data: await crypto.subtle.encrypt({ name: "AES-GCM", iv }, this.secret, plain) });
  }

  /** Send the entries in order, until one must wait. A refused or an old one goes to `show`, for the user to decide. */
  async flush(send: (recording: Recording) => Promise<Outcome>, show: (refused: Recording) => void): Promise<void> {
    for (const { id, sealed } of await this.store.all()) {
      const plain = await crypto.subtle.decrypt({ name: "AES-GCM", iv: sealed.iv }, this.secret, sealed.data);
      const recording = JSON.parse(new TextDecoder().decode(plain)) as Recording;
      const outcome = Date.now() - recording.madeAt > this.maxAgeMs ? "refused" : await send(recording);
      if (outcome === "later") return;
      if (outcome === "refused") show(recording);
      await this.store.delete(id);
    }
  }
}

const RECORD = `mutation ($patientId: ID!, $input: RecordEncounterInput!, $key: String!) {
  recordEncounter(patientId: $patientId, input: $input, idempotencyKey: $key) { __typename }
}`;
const LATER = ["temporarily_unavailable", "rate_limited", "request_timeout", "server_error"];
const SIGN_IN = ["unauthenticated", "invalid_token"];

/** Send a recording under its own key. `call` is `fetch` with the address and the token. */
export async function send(
  { key, patientId, input }: Recording,
  call: (body: string) => Promise<Response>,
): Promise<Outcome> {
  let answer;
  try {
    answer = await (await call(JSON.stringify({ query: RECORD, variables: { patientId, input, key } }))).json();
  } catch {
    return "later"; // no answer: the encounter may have been recorded, and the same key finds it
  }
  const code = answer.errors?.[0]?.extensions?.code;
  if (code) return [...LATER, ...SIGN_IN].includes(code) ? "later" : "refused";
  const result = answer.data?.recordEncounter?.__typename;
  if (!result) return "later"; // not an answer of the gateway, but of a proxy
  return result === "EncounterRecorded" ? "recorded" : "refused";
}

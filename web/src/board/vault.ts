// The unsent changes of this browser in IndexedDB, encrypted.
//
// A change contains clinical text, so its members are stored only as the ciphertext of AES-GCM. The key is generated in
// this browser and cannot be exported. What stays readable is the idempotency key, the time and the owner.

import { createStore, del, get, set, update, values } from "idb-keyval";

export interface Change {
  /** The idempotency key: one for each change, for all its attempts. */
  key: string;
  /** The name of the mutation. */
  name: string;
  variables: Record<string, unknown>;
  /** Milliseconds since 1970, UTC. */
  madeAt: number;
  /** Brand, client, person and path of the gateway: only they may send it, and only there. */
  owner: string;
}

interface Stored {
  key: string;
  madeAt: number;
  owner: string;
  iv: Uint8Array<ArrayBuffer>;
  ciphertext: ArrayBuffer;
}

/** Whether this page may encrypt: browsers allow it over HTTPS and on localhost only. */
export const durable = globalThis.isSecureContext && "indexedDB" in globalThis;

const changes = durable ? createStore("board-changes", "changes") : undefined;
const keys = durable ? createStore("board-key", "key") : undefined;

/** Return the encryption key of this browser, and generate it on first use. Tabs that do so together agree on one. */
async function encryptionKey(): Promise<CryptoKey> {
  const known = await get<CryptoKey>("key", keys);
  if (known) return known;
  const generated = await crypto.subtle.generateKey({ name: "AES-GCM", length: 256 }, false, ["encrypt", "decrypt"]);
  await update<CryptoKey>("key", (stored) => stored ?? generated, keys);
  return (await get<CryptoKey>("key", keys))!;
}

/** Store a change before it is sent. Without a secure context it stays in memory only. */
export async function store({ key, madeAt, owner, ...secret }: Change): Promise<void> {
  if (!changes) return;
  const iv = crypto.getRandomValues(new Uint8Array(12));
  const text = new TextEncoder().encode(JSON.stringify(secret));
  const ciphertext = await crypto.subtle.encrypt({ name: "AES-GCM", iv }, await encryptionKey(), text);
  await set(key, { key, madeAt, owner, iv, ciphertext } satisfies Stored, changes);
}

/** Delete a change whose outcome is known. */
export async function remove(key: string): Promise<void> {
  if (changes) await del(key, changes);
}

/** Return the stored changes of an owner, oldest first. A change that cannot be decrypted is deleted. */
export async function stored(owner: string): Promise<Change[]> {
  if (!changes) return [];
  const own = (await values<Stored>(changes)).filter((each) => each.owner === owner);
  const found: Change[] = [];
  for (const { key, madeAt, iv, ciphertext } of own.sort((one, other) => one.madeAt - other.madeAt)) {
    try {
      const text = await crypto.subtle.decrypt({ name: "AES-GCM", iv }, await encryptionKey(), ciphertext);
      found.push({ key, madeAt, owner, ...JSON.parse(new TextDecoder().decode(text)) });
    } catch {
      await del(key, changes);
    }
  }
  return found;
}

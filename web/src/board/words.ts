// Texts and dates as the board shows them.

import type { CardFragment, EncounterAction, EncounterStatus, EncounterType } from "./operations";

export const STATUSES: Record<EncounterStatus, string> = {
  SCHEDULED: "Scheduled",
  IN_PROGRESS: "In progress",
  COMPLETED: "Completed",
  CANCELLED: "Cancelled",
  NO_SHOW: "No show",
  ENTERED_IN_ERROR: "Entered in error",
};

export const TYPES: Record<EncounterType, string> = {
  OFFICE_VISIT: "Office visit",
  TELEHEALTH: "Telehealth",
  LAB: "Lab",
  PHARMACY: "Pharmacy",
  OTHER: "Other",
};

/** The actions of the board, in the order of their buttons. */
export const ACTIONS = {
  START: "Start",
  COMPLETE: "Complete",
  RESCHEDULE: "Reschedule…",
  MARK_NO_SHOW: "No show…",
  CANCEL: "Cancel…",
  UNDO_START: "Undo start…",
  MARK_ENTERED_IN_ERROR: "Entered in error…",
} satisfies Partial<Record<EncounterAction, string>>;

export type BoardAction = keyof typeof ACTIONS;

export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/** Return the local time of an instant, or a dash. */
export const timeOf = (instant: string | null) => (instant ? clock.format(new Date(instant)) : "–");

/** Return the local date and time of an instant, or a text for none. */
export const dateTimeOf = (instant: string | null) => (instant ? full.format(new Date(instant)) : "not scheduled");

const two = (number: number) => String(number).padStart(2, "0");

/** Return the local calendar day of an instant, as an input of the type `date` has it. */
export const dayOf = (date: Date) => `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;

/** Return the local date and time of an instant, as an input of the type `datetime-local` has it. */
export const localOf = (date: Date) => `${dayOf(date)}T${two(date.getHours())}:${two(date.getMinutes())}`;

/** Return the start of a local calendar day. Some days have 23 or 25 hours, so days are added and not hours. */
export function startOf(day: string, days = 0): Date {
  const [year = 0, month = 1, date = 1] = day.split("-").map(Number);
  return new Date(year, month - 1, date + days);
}

export const providerName = (id: string | null) => (id ? `Provider ${id.slice(0, 8)}` : "No provider");

export const titleOf = ({ scheduledAt, patientId }: Pick<CardFragment, "scheduledAt" | "patientId">) =>
  `${timeOf(scheduledAt)} ${patientId}`;

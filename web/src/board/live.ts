// The events of the brand from the cursor of a list. The cache applies the encounter of each event to every list.

import { useEffect, useEffectEvent } from "react";
import { useClient } from "urql";
import { onEnd, pipe, subscribe } from "wonka";
import { codeOf } from "./client";
import { EventsDocument, type EventsFilter, type EventsSubscription } from "./operations";

const OPENED_MS = 500;
const RETRY_MS = [1_000, 2_000, 5_000, 10_000];

/**
 * Follow the events after a cursor until the component is gone. A lost stream resumes after the last event.
 *
 * @param from - the `feedCursor` of a list; undefined while it is being read
 * @param where - events that the gateway sends; the others cost nothing
 * @param onEvent - is called for each event
 * @param onState - is called with whether events arrive; after a cursor has expired, with "expired"
 */
export function useEvents(
  from: string | undefined,
  where: EventsFilter,
  onEvent: (event: EventsSubscription["encounterEvents"]) => void,
  onState: (state: "live" | "lost" | "expired") => void,
) {
  const client = useClient();
  const notify = useEffectEvent(onEvent);
  const tell = useEffectEvent(onState);
  const filter = JSON.stringify(where);

  useEffect(() => {
    if (from === undefined) return;
    let after = from;
    let failures = 0;
    let timer: ReturnType<typeof setTimeout>;
    let stop = () => {};

    const follow = () => {
      let over = false;
      const lost = (state: "lost" | "expired" = "lost") => {
        if (over) return;
        stop();
        tell(state);
        if (state === "lost") timer = setTimeout(follow, RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]);
      };
      // A stream says nothing when it is opened, and soon says so if it cannot be.
      timer = setTimeout(() => tell("live"), OPENED_MS);
      const { unsubscribe } = pipe(
        client.subscription(EventsDocument, { after, where: JSON.parse(filter) as EventsFilter }),
        onEnd(() => lost()),
        subscribe(({ data, error }) => {
          if (error)
            return lost(codeOf(error) === "validation_error" ? "expired" : "lost");
          if (!data) return;
          failures = 0;
          after = data.encounterEvents.cursor;
          notify(data.encounterEvents);
        }),
      );
      stop = () => {
        over = true;
        clearTimeout(timer);
        unsubscribe();
      };
    };

    follow();
    const onOnline = () => {
      stop();
      clearTimeout(timer);
      follow();
    };
    addEventListener("online", onOnline);
    const onOffline = () => tell("lost");
    addEventListener("offline", onOffline);
    return () => {
      removeEventListener("online", onOnline);
      removeEventListener("offline", onOffline);
      clearTimeout(timer);
      stop();
    };
  }, [client, from, filter]);
}

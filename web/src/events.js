// The events of a subscription, one below the other; GraphiQL itself shows only the last one.

const MAX_EVENTS = 200;

/**
 * Wrap the async iterator of a subscription so that each value is `{ events }`, all results so far, the newest last.
 *
 * At most 200 are kept; `earlier` is the number of those dropped. `editor` returns the Monaco editor that shows the values,
 * or null. It scrolls to the newest event, unless the user has scrolled up.
 */
export function appended(results, editor) {
  const inner = results[Symbol.asyncIterator]();
  const events = [];
  let earlier = 0;
  let position = null;
  return {
    [Symbol.asyncIterator]() {
      return this;
    },
    async next() {
      // GraphiQL asks for the next value when it has shown the previous one.
      if (position) restore(editor(), position);
      const { value, done } = await inner.next();
      if (done) return { value, done };
      events.push(value);
      if (events.length > MAX_EVENTS) {
        events.shift();
        earlier += 1;
      }
      position = scrollStateOf(editor());
      return { value: { ...(earlier && { earlier }), events: [...events] }, done };
    },
    // Not an async generator: its `return` would wait for the next event.
    return: (value) => inner.return?.(value) ?? Promise.resolve({ value, done: true }),
  };
}

function scrollStateOf(editor) {
  if (!editor) return null;
  const top = editor.getScrollTop();
  return { top, atEnd: top + editor.getLayoutInfo().height >= editor.getScrollHeight() - 4 };
}

function restore(editor, { top, atEnd }) {
  if (atEnd) editor?.revealLine(editor.getModel().getLineCount());
  else editor?.setScrollTop(top);
}

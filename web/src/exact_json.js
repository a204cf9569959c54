// Reads and writes JSON and keeps every digit: JSON.parse reads 1.10 as 1.1, and rounds 12345678901234567890.

// Between reading and writing, a number is a string that begins with this mark. A string of the input that begins with the
// mark gets a second one, so that it is not taken for a number.
const MARK = "\u0000";
const TOKENS = /"(?:[^"\\]|\\.)*"|-?[0-9][-+0-9.eE]*|\/\/[^\n]*|\/\*[^]*?\*\//g;

/** Return the representation of a number, given its digits, for a value that `write` writes. */
export const number = (text) => MARK + text;

/** Return a string as `read` would, so that `write` does not take it for a number. */
export const string = (text) => (text.startsWith(MARK) ? MARK + text : text);

/** Parse JSON, in which comments are allowed as in GraphiQL. Throws SyntaxError. */
export function read(text) {
  return JSON.parse(
    text.replace(TOKENS, (token) => {
      if (token.startsWith("/")) return "";
      if (token.startsWith('"')) return token.startsWith('"\\u0000') ? `"\\u0000\\u0000${token.slice(7)}` : token;
      JSON.parse(token);
      return `"\\u0000${token}"`;
    }),
  );
}

/** Serialize a value of `read`; `indent` as for JSON.stringify. */
export function write(value, indent) {
  return JSON.stringify(value, null, indent).replace(/"(?:[^"\\]|\\.)*"/g, (token) => {
    if (token.startsWith('"\\u0000\\u0000')) return `"${token.slice(7)}`;
    return token.startsWith('"\\u0000') ? token.slice(7, -1) : token;
  });
}

/**
 * Return whether a program that parses this JSON and writes it again, as JSON.parse and JSON.stringify do, would send the
 * same: no member twice, and no number that a double changes.
 */
export function faithful(text) {
  try {
    const compact = text.replace(/("(?:[^"\\]|\\.)*")|\s+/g, (_, string) => string ?? "");
    return JSON.stringify(JSON.parse(text)) === compact;
  } catch {
    return false;
  }
}

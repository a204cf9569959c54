// JSON whose numbers keep every digit: JSON.parse would read 1.10 as 1.1, and 12345678901234567890 as another number.

// What stands for a number between reading and writing. A text that begins like one gets a further mark, so none is
// taken for a number.
const MARK = "\u0000";
const TOKENS = /"(?:[^"\\]|\\.)*"|-?[0-9][-+0-9.eE]*|\/\/[^\n]*|\/\*[^]*?\*\//g;

/** Give a number as it is written, to be put into a value that `write` writes. */
export const number = (text) => MARK + text;

/** Give a text as `read` would, so that `write` takes none for a number. */
export const string = (text) => (text.startsWith(MARK) ? MARK + text : text);

/** Read JSON, comments allowed, as GraphiQL allows them. Throws SyntaxError. */
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

/** Write JSON; `indent` as for JSON.stringify. */
export function write(value, indent) {
  return JSON.stringify(value, null, indent).replace(/"(?:[^"\\]|\\.)*"/g, (token) => {
    if (token.startsWith('"\\u0000\\u0000')) return `"${token.slice(7)}`;
    return token.startsWith('"\\u0000') ? token.slice(7, -1) : token;
  });
}

// As much of a POSIX shell as it takes to write a command that a person pastes, and to read one that was pasted.

/** Quote a word so that a shell hands it on as it is. */
export const quote = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", String.raw`'\''`)}'`);

const ESCAPES = { n: "\n", t: "\t", r: "\r", a: "\x07", b: "\b", e: "\x1b", f: "\f", v: "\v" };

/** Split the first command of a text into its words. `$NAME` stays as it is. Throws Error for a quote left open. */
export function words(text) {
  const found = [];
  let word = null;
  const add = (piece) => (word = (word ?? "") + piece);
  for (let rest = text.replaceAll("\r\n", "\n"); rest; ) {
    const [taken] =
      /^(\$'(?:[^'\\]|\\[^])*'|'[^']*'|"(?:[^"\\]|\\[^])*"|\\[^]|[ \t]+|\n|#[^\n]*|[|;&<>()]|[^ \t\n'"\\|;&<>()]+)/.exec(
        rest,
      ) ?? [];
    if (taken === undefined) throw new Error("A quote is left open.");
    rest = rest.slice(taken.length);
    if (taken.startsWith("$'")) add(ansi(taken.slice(2, -1)));
    else if (taken.startsWith("'")) add(taken.slice(1, -1));
    else if (taken.startsWith('"')) add(taken.slice(1, -1).replace(/\\([$`"\\\n])/g, (_, it) => (it === "\n" ? "" : it)));
    else if (taken === "\\\n") continue;
    else if (taken.startsWith("\\")) add(taken.slice(1));
    else if (taken.startsWith("#") && word !== null) add(taken);
    else if (/^[ \t#]/.test(taken)) {
      if (word !== null) found.push(word);
      word = null;
    } else if (/^[\n|;&<>()]/.test(taken)) {
      if (word !== null) found.push(word);
      word = null;
      if (found.length) break;
    } else add(taken);
  }
  if (word !== null) found.push(word);
  return found;
}

function ansi(text) {
  return text.replace(/\\(u[0-9a-fA-F]{1,4}|x[0-9a-fA-F]{1,2}|[0-7]{1,3}|[^])/g, (_, it) => {
    if (/^[ux]./.test(it)) return String.fromCharCode(Number.parseInt(it.slice(1), 16));
    if (/^[0-7]/.test(it)) return String.fromCharCode(Number.parseInt(it, 8));
    return ESCAPES[it] ?? it;
  });
}

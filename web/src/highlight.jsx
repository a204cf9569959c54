// Colours strings, names of members, numbers and keywords; enough for JSON and the code samples.

const TOKENS =
  /("""[^]*?"""|"(?:[^"\\\n]|\\.)*"|'[^']*'|`[^`]*`)(?=(\s*:)?)|\b(import|as|const|await|async|new|var|using|class|public|static|void|throws|print)\b|(?<![\w.$:])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.])|\b(true|false|null|True|False|None)\b/g;

/** Return a text as React nodes. */
export function highlight(text) {
  const nodes = [];
  let at = 0;
  for (const found of text.matchAll(TOKENS)) {
    const [token, string, colon, keyword] = found;
    nodes.push(text.slice(at, found.index));
    const kind = string ? (colon ? "name" : "string") : keyword ? "keyword" : "number";
    nodes.push(
      <span key={found.index} className={`code-${kind}`}>
        {token}
      </span>,
    );
    at = found.index + token.length;
  }
  return [...nodes, text.slice(at)];
}

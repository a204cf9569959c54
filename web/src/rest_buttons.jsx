import { pick, ToolbarButton, useGraphiQL, useGraphiQLActions } from "@graphiql/react";
import { useRef, useState } from "react";
import { createPortal } from "react-dom";
import { copy } from "./clipboard.js";
import { toGraphql, toRest } from "./conversion.js";

/** The two buttons between the doors: this tab's call as a curl, and a REST call as a new tab. */
export function RestButtons() {
  return (
    <>
      <CopyAsRest />
      <PasteRest />
    </>
  );
}

function CopyAsRest() {
  const { queryEditor, variableEditor, operationName } = useGraphiQL(pick("queryEditor", "variableEditor", "operationName"));
  const dialog = useRef(null);
  const shown = useRef(null);
  const [{ command, said }, setResult] = useState({});

  async function convert() {
    try {
      const variables = variableEditor?.getValue();
      shown.current.textContent = toRest(queryEditor.getValue(), variables, { origin: location.origin, operationName });
    } catch (error) {
      setResult({ said: error.message });
      dialog.current.showModal();
      return;
    }
    dialog.current.showModal();
    const copied = await copy(shown.current);
    setResult({
      command: true,
      said: copied
        ? "Copied. The token is left to your shell: export TOKEN=…"
        : "Selected: press Ctrl+C. The token is left to your shell: export TOKEN=…",
    });
  }

  return (
    <>
      <ToolbarButton label="Copy as REST" onClick={convert}>
        <RestIcon out />
      </ToolbarButton>
      <Sheet dialog={dialog} title="This call, over REST">
        <pre ref={shown} className="command" hidden={!command} tabIndex={0} />
        <p role="status">{said}</p>
      </Sheet>
    </>
  );
}

function PasteRest() {
  const { queryEditor, variableEditor } = useGraphiQL(pick("queryEditor", "variableEditor"));
  const { addTab } = useGraphiQLActions();
  const dialog = useRef(null);
  const pasted = useRef(null);
  const [said, setSaid] = useState("");

  function convert() {
    try {
      const { query, variables, ignored } = toGraphql(pasted.current.value);
      addTab();
      queryEditor.setValue(ignored.length ? `# Left out, as REST ignores it: ${ignored.join(", ")}\n${query}` : query);
      variableEditor.setValue(variables);
    } catch (error) {
      setSaid(error.message);
      return;
    }
    pasted.current.value = "";
    setSaid("");
    dialog.current.close();
  }

  return (
    <>
      <ToolbarButton label="Paste REST as GraphQL" onClick={() => dialog.current.showModal()}>
        <RestIcon />
      </ToolbarButton>
      <Sheet dialog={dialog} title="A REST call, over GraphQL">
        <textarea
          ref={pasted}
          rows={10}
          spellCheck={false}
          autoComplete="off"
          aria-label="REST call"
          placeholder={PLACEHOLDER}
          onInput={() => setSaid("")}
        />
        <p role="status">{said}</p>
        <button type="button" className="button" onClick={convert}>
          Open in a new tab
        </button>
      </Sheet>
    </>
  );
}

const PLACEHOLDER = `curl … -d '{"brand_id": …}'

or

POST /v1/patients/{patient_id}/encounters
Idempotency-Key: …

{"brand_id": …}`;

// Outside of the editor, whose styles and keys are its own.
function Sheet({ dialog, title, children }) {
  return createPortal(
    <dialog ref={dialog} className="sheet" aria-label={title}>
      <header>
        <h2>{title}</h2>
        <button type="button" className="quiet" onClick={() => dialog.current.close()}>
          Close
        </button>
      </header>
      {children}
    </dialog>,
    document.body,
  );
}

function RestIcon({ out }) {
  return (
    <svg className="rest-icon" viewBox="0 0 24 24" aria-hidden="true">
      <text x="12" y="9.5" textAnchor="middle">
        REST
      </text>
      <path d={out ? "M12 22v-8m-3.5 3L12 13.5 15.5 17" : "M12 13v8m-3.5-3L12 21.5 15.5 18"} />
    </svg>
  );
}

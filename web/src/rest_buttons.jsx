import { pick, useGraphiQL, useGraphiQLActions } from "@graphiql/react";
import { useRef, useState } from "react";
import { createPortal } from "react-dom";
import { base } from "./base.js";
import { copy } from "./clipboard.js";
import { toGraphql, toRest } from "./conversion.js";

/** Two buttons of the toolbar: copy the tab's call as a curl command, and open a REST call as a new tab. */
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
      shown.current.textContent = toRest(queryEditor.getValue(), variables, { base, operationName });
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
        ? "Copied. Your shell inserts the token: export TOKEN=…"
        : "Selected: press Ctrl+C. Your shell inserts the token: export TOKEN=…",
    });
  }

  return (
    <>
      <button type="button" className="rest-button" onClick={convert}>
        Copy as REST call
      </button>
      <Sheet dialog={dialog} title="This call over REST">
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
      queryEditor.setValue(ignored.length ? `# Left out, because REST ignores it: ${ignored.join(", ")}\n${query}` : query);
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
      <button type="button" className="rest-button" onClick={() => dialog.current.showModal()}>
        Paste REST call
      </button>
      <Sheet dialog={dialog} title="A REST call over GraphQL">
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

// Rendered outside of GraphiQL, so that its styles and keyboard shortcuts do not apply.
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

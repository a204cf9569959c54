import { explorerPlugin } from "@graphiql/plugin-explorer";
import { HISTORY_PLUGIN } from "@graphiql/plugin-history";
import { createGraphiQLFetcher } from "@graphiql/toolkit";
import { pick, useGraphiQL } from "@graphiql/react";
import { GraphiQL } from "graphiql";
import { getOperationAST, parse } from "graphql";
import { useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { createRoot } from "react-dom/client";
import "graphiql/setup-workers/vite";
import "graphiql/style.css";
import "@graphiql/plugin-explorer/style.css";
import "./explorer.css";
import { askForToken } from "./authorize.js";
import { development } from "./development.js";
import { anybody, examples, variablesFor } from "./examples.js";
import { memoryStorage } from "./memory.js";
import { noteRecorded, whenRecorded } from "./recorded.js";
import { RestButtons } from "./rest_buttons.jsx";
import { bearer, currentToken, whenTokenChanges } from "./token.js";

const url = new URL("/graphql", location.href).href;
const plugins = [HISTORY_PLUGIN, explorerPlugin()];
const storage = memoryStorage();
// Any JSON goes there, which the editor of variables cannot know.
const scalars = { JSON: {} };

// Headers go with a subscription only where the socket is opened by its address: then they are what it says first.
const fetcher = createGraphiQLFetcher({
  url,
  subscriptionUrl: url.replace(/^http/, "ws"),
  enableIncrementalDelivery: false,
});

/**
 * Name the operation as its document does. The explorer learns what a tab's only operation is called a moment after the
 * tab is chosen, and would ask for the last one's until then.
 */
function named(params, options) {
  try {
    const documentAST = parse(params.query);
    const only = getOperationAST(documentAST);
    return only ? [{ ...params, operationName: only.name?.value }, { ...options, documentAST }] : [params, options];
  } catch {
    return [params, options]; // The gateway says what is wrong with it.
  }
}

/** Give a fetcher that sends the token with every call; without one it asks for it. */
function withToken(token) {
  return async (...asked) => {
    const [params, options] = named(...asked);
    if (token)
      return noteRecorded(await fetcher(params, { ...options, headers: { ...bearer(token), ...options?.headers } }));
    askForToken();
    return { errors: [{ message: "Authorize first: a call needs a bearer token." }] };
  };
}

/**
 * Shows nothing: has the tabs that nobody has edited ask about the patient of the development token just chosen, and about
 * the encounter just recorded.
 */
function OwnVariables({ token }) {
  const { tabs, variableEditor } = useGraphiQL(pick("tabs", "variableEditor"));
  const now = useRef(tabs);
  now.current = tabs;
  useEffect(() => {
    if (!variableEditor) return;
    const who = development.find((each) => each.token === token) ?? anybody;
    const refresh = () => {
      // There is no action for a tab in the background: it is read again when it is chosen.
      for (const tab of now.current) tab.variables = variablesFor(who, tab.variables ?? "");
      const shown = variableEditor.getValue();
      const own = variablesFor(who, shown);
      if (own !== shown) variableEditor.setValue(own);
    };
    refresh();
    return whenRecorded(refresh);
    // When the token changes or one is recorded, and not with each key that is typed.
  }, [token, variableEditor]);
  return null;
}

function Explorer() {
  const token = useSyncExternalStore(whenTokenChanges, currentToken);
  const authorized = useMemo(() => withToken(token), [token]);
  return (
    <GraphiQL
      fetcher={authorized}
      // Without a token nothing is asked; with one the schema is.
      schema={token ? undefined : null}
      plugins={plugins}
      storage={storage}
      shouldPersistHeaders={false}
      showPersistHeadersSettings={false}
      forcedTheme="system"
      defaultTabs={examples}
      // Of the first tab only the document is shown by itself.
      initialVariables={examples[0].variables}
      defaultEditorToolsVisibility="variables"
      customScalarSchemas={scalars}
      inputValueDeprecation
    >
      <GraphiQL.Logo>
        <></>
      </GraphiQL.Logo>
      <GraphiQL.Toolbar>
        {({ prettify, merge, copy }) => (
          <>
            {prettify}
            {merge}
            {copy}
            <RestButtons />
            <OwnVariables token={token} />
          </>
        )}
      </GraphiQL.Toolbar>
    </GraphiQL>
  );
}

createRoot(document.querySelector("#graphiql")).render(<Explorer />);

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
import { correctAccessibility } from "./accessibility.js";
import { askForToken } from "./authorize.js";
import { base } from "./base.js";
import { development } from "./development.js";
import { appended } from "./events.js";
import { defaultCaller, examples, isExample, variablesFor } from "./examples.js";
import { memoryStorage } from "./memory.js";
import { noteRecorded, whenRecorded } from "./recorded.js";
import { RestButtons } from "./rest_buttons.jsx";
import { bearer, currentToken, whenTokenChanges } from "./token.js";

const url = `${base}/graphql`;
const plugins = [HISTORY_PLUGIN, explorerPlugin()];
const storage = memoryStorage();
// The scalar accepts any JSON, which the schema does not say to the editor of variables.
const scalars = { JSON: {} };

// With `subscriptionUrl` GraphiQL opens a socket for each subscription, and sends the headers in its first message.
const fetcher = createGraphiQLFetcher({
  url,
  subscriptionUrl: url.replace(/^http/, "ws"),
  enableIncrementalDelivery: false,
});

/**
 * Set the operation's name to that of the document's only operation. For a moment after a tab is chosen, GraphiQL still has
 * the name of the previous tab's operation.
 */
function withOperationName(params, options) {
  try {
    const documentAST = parse(params.query);
    const only = getOperationAST(documentAST);
    return only ? [{ ...params, operationName: only.name?.value }, { ...options, documentAST }] : [params, options];
  } catch {
    return [params, options]; // The gateway reports what is wrong with the document.
  }
}

/** Return a fetcher that sends the token with every call. Without a token it requests one. */
function withToken(token) {
  return async (...given) => {
    const [params, options] = withOperationName(...given);
    if (!token) {
      askForToken();
      return { errors: [{ message: "Authorize first: a call needs a bearer token." }] };
    }
    const answer = await fetcher(params, { ...options, headers: { ...bearer(token), ...options?.headers } });
    return answer?.[Symbol.asyncIterator] ? appended(answer, () => responsePane.current) : noteRecorded(answer);
  };
}

// The editor that shows responses, for `appended`, which runs outside of React.
const responsePane = { current: null };

/**
 * Renders nothing. Fills the variables of unedited tabs with the patient of the chosen development token, and with the
 * encounter that was recorded last.
 */
function OwnVariables({ token }) {
  const { tabs, variableEditor } = useGraphiQL(pick("tabs", "variableEditor"));
  const now = useRef(tabs);
  now.current = tabs;
  useEffect(() => {
    if (!variableEditor) return;
    const who = development.find((each) => each.token === token) ?? defaultCaller;
    const refresh = () => {
      // GraphiQL has no action for a tab in the background, but reads it again when it is chosen.
      for (const tab of now.current) tab.variables = variablesFor(who, tab.variables ?? "");
      const shown = variableEditor.getValue();
      const own = variablesFor(who, shown);
      if (own !== shown) variableEditor.setValue(own);
    };
    refresh();
    return whenRecorded(refresh);
    // Not when `tabs` changes, which it does with each key that is typed.
  }, [token, variableEditor]);
  return null;
}

/** Renders nothing. Lets the browser ask before it leaves the page, if a tab has text that is not that of an example. */
function UnsavedText() {
  const { tabs, activeTabIndex, queryEditor, variableEditor, headerEditor, responseEditor } = useGraphiQL(
    pick("tabs", "activeTabIndex", "queryEditor", "variableEditor", "headerEditor", "responseEditor"),
  );
  responsePane.current = responseEditor;
  useEffect(() => {
    // Read from the editors, because `tabs` has what is typed a moment later.
    const shown = () => ({
      query: queryEditor?.getValue(),
      variables: variableEditor?.getValue(),
      headers: headerEditor?.getValue(),
    });
    const warn = (event) => {
      const all = tabs.map((tab, at) => (at === activeTabIndex ? shown() : tab));
      if (!all.every(isExample)) event.preventDefault();
    };
    addEventListener("beforeunload", warn);
    return () => removeEventListener("beforeunload", warn);
  }, [tabs, activeTabIndex, queryEditor, variableEditor, headerEditor]);
  return null;
}

const darkScheme = matchMedia("(prefers-color-scheme: dark)");

function watchScheme(listener) {
  darkScheme.addEventListener("change", listener);
  return () => darkScheme.removeEventListener("change", listener);
}

function Explorer() {
  // GraphiQL's own theme "system" reads the colour scheme only once.
  const theme = useSyncExternalStore(watchScheme, () => (darkScheme.matches ? "dark" : "light"));
  const token = useSyncExternalStore(whenTokenChanges, currentToken);
  const authorized = useMemo(() => withToken(token), [token]);
  return (
    <GraphiQL
      fetcher={authorized}
      // The schema is requested as soon as there is a token.
      schema={token ? undefined : null}
      plugins={plugins}
      storage={storage}
      shouldPersistHeaders={false}
      showPersistHeadersSettings={false}
      forcedTheme={theme}
      defaultTabs={examples}
      // GraphiQL itself fills only the document of the first tab.
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
            <UnsavedText />
          </>
        )}
      </GraphiQL.Toolbar>
    </GraphiQL>
  );
}

const root = document.querySelector("#graphiql");
createRoot(root).render(<Explorer />);
correctAccessibility(root);

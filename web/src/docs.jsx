import { StrictMode, useEffect, useId, useRef, useState, useSyncExternalStore } from "react";
import { createRoot } from "react-dom/client";
import "./docs.css";
import { askForToken } from "./authorize.js";
import { base } from "./base.js";
import { copy } from "./clipboard.js";
import { LANGUAGES } from "./code_samples.js";
import { development } from "./development.js";
import { read, write } from "./exact_json.js";
import { highlight } from "./highlight.jsx";
import { readDescription } from "./openapi.js";
import { freshKey } from "./random.js";
import refusals from "./refusals.json";
import { bearer, currentToken, whenTokenChanges } from "./token.js";

/** The REST page: each call of /openapi.json with a form, the answer beside it, and the call as source code. */
function RestPage() {
  const [description, setDescription] = useState(null);
  const [failure, setFailure] = useState("");
  const [language, setLanguage] = useState(LANGUAGES[0].id);
  const [showToken, setShowToken] = useState(false);
  const [recorded, setRecorded] = useState("");
  const token = useSyncExternalStore(whenTokenChanges, currentToken);

  useEffect(() => {
    loadDescription().then(setDescription, (error) => setFailure(error.message));
  }, []);
  useEffect(() => {
    // The browser looked for the target of the address before it was rendered.
    if (description && location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  }, [description]);

  if (failure) return <p className="failure" role="alert">{`The description could not be loaded. ${failure}`}</p>;
  if (!description) return <p className="failure" role="status">Loading openapi.json …</p>;
  const shared = { token, language, setLanguage, showToken, setShowToken, recorded, setRecorded };
  return (
    <>
      <header className="intro">
        <h1>REST</h1>
        <p>
          {description.about} Everything here is read from <a href="openapi.json">openapi.json</a>, the OpenAPI 3.1 description
          for generators of clients.
        </p>
        <nav aria-label="On this page">
          {description.calls.map((call) => (
            <a key={call.id} href={`#${call.id}`}>
              <Method name={call.method} /> {call.summary}
            </a>
          ))}
          <a href="#encounter">Encounter</a>
          <a href="#statuses">Statuses</a>
        </nav>
      </header>
      {description.calls.map((call) => (
        <Call key={call.id} call={call} {...shared} />
      ))}
      <section className="call" id="encounter" aria-labelledby="encounter-title">
        <h2 id="encounter-title">Encounter</h2>
        <p>An answer has all of these members. A member without a value is null.</p>
        <Members members={description.encounter} label="Members of an encounter" />
      </section>
      <Statuses responses={description.responses} calls={description.calls} />
    </>
  );
}

async function loadDescription() {
  const answer = await fetch(`${base}/openapi.json`);
  if (!answer.ok) throw new Error(`The gateway answered ${answer.status}.`);
  return readDescription(await answer.json());
}

function Call({ call, token, language, setLanguage, showToken, setShowToken, recorded, setRecorded }) {
  // A value that was not edited follows the token: the patient and brand of a development token.
  const [edited, setEdited] = useState({});
  const [example, setExample] = useState(0);
  const [answer, setAnswer] = useState(null);
  const who = development.find((each) => each.token === token) ?? development[0];
  const defaults = { patient_id: who?.patient ?? "", encounter_id: recorded, body: call.examples && bodyOf(call.examples[example].value, who) };
  const values = { ...defaults, ...edited };
  const set = (name, value) => setEdited((known) => ({ ...known, [name]: value }));
  const request = requestOf(call, values);

  async function send(event) {
    event.preventDefault();
    if (!token) {
      setAnswer({ failure: "Authorize first: a call needs a bearer token." });
      askForToken();
      return;
    }
    setAnswer({ sending: true });
    const received = await sendRequest(request, token);
    setAnswer(received);
    if (received.status === 201) setRecorded(received.id);
  }

  return (
    <section className="call" id={call.id} aria-labelledby={`${call.id}-title`}>
      <h2 id={`${call.id}-title`}>{call.summary}</h2>
      <p className="path">
        <Method name={call.method} /> <code>{call.path}</code>
      </p>
      <p>
        <Text>{call.description}</Text> <Text>{call.scopes}</Text>
      </p>
      <div className="columns">
        <form onSubmit={send} aria-label={call.summary}>
          <Parameters call={call} values={values} set={set} />
          {call.members && (
            <Body call={call} value={values.body} set={set} example={example} choose={(at) => (setExample(at), set("body", undefined))} />
          )}
          <div className="send">
            <button type="submit" className="button" disabled={answer?.sending}>
              {answer?.sending ? "Sending …" : "Send"}
            </button>
            <span>
              {call.method === "POST" && values.validate_only !== "true" ? "Records an encounter for real." : "Changes nothing."}
            </span>
          </div>
        </form>
        <div className="beside">
          <Samples of={call.summary} request={request} token={showToken ? token : null} {...{ language, setLanguage, showToken, setShowToken }} />
          <Answer of={call.summary} answer={answer} example={call.success} />
        </div>
      </div>
      {call.members && <Members members={call.members} label="Members of the body" title="Members of the body" requires />}
    </section>
  );
}

const bodyOf = (value, who) => JSON.stringify(who ? { ...value, brand_id: who.brand } : value, null, 2);

/** Return `{ method, url, headers, body }`; a path parameter without a value stays as `{name}`. */
function requestOf(call, values) {
  const given = call.parameters.filter(({ name }) => values[name]);
  const path = call.path.replace(/\{(\w+)\}/g, (template, name) => (values[name] ? encodeURIComponent(values[name]) : template));
  const query = given.filter((each) => each.in === "query").map(({ name }) => `${name}=${encodeURIComponent(values[name])}`);
  return {
    method: call.method,
    url: base + path + (query.length ? `?${query.join("&")}` : ""),
    headers: given.filter((each) => each.in === "header").map(({ name }) => [name, values[name]]),
    body: call.members && values.body,
  };
}

/** Send a request; return `{ status, milliseconds, headers, text, id, code }`, or `{ failure }`. */
async function sendRequest({ method, url, headers, body }, token) {
  const started = performance.now();
  try {
    const answer = await fetch(url, {
      method,
      headers: [...headers, ...Object.entries(bearer(token)), ...(body === undefined ? [] : [["Content-Type", "application/json"]])],
      body,
      cache: "no-store",
    });
    const text = await answer.text();
    const milliseconds = Math.round(performance.now() - started);
    const parsed = parsedOrUndefined(text);
    return {
      status: answer.status,
      milliseconds,
      headers: [...answer.headers],
      text: parsed === undefined ? text : write(parsed, 2),
      id: parsed?.id,
      code: typeof parsed?.error === "string" ? parsed.error : undefined,
    };
  } catch (error) {
    return { failure: error instanceof TypeError && /header|value|ISO/i.test(error.message) ? "A header value has characters that HTTP does not allow." : "The gateway cannot be reached." };
  }
}

function parsedOrUndefined(text) {
  try {
    return read(text);
  } catch {
    return undefined;
  }
}

function Parameters({ call, values, set }) {
  const prefix = useId();
  return (
    <table className="fields">
      <caption>Parameters</caption>
      <thead>
        <tr>
          <th scope="col">Name</th>
          <th scope="col">Value</th>
        </tr>
      </thead>
      <tbody>
        {call.parameters.map((parameter) => {
          const { name, required, schema, limits, description, type } = parameter;
          const id = `${prefix}${name}`;
          const field = { id, value: values[name] ?? "", onChange: (event) => set(name, event.target.value), "aria-describedby": `${id}-about` };
          return (
            <tr key={name}>
              <th scope="row">
                <label htmlFor={id}>{name}</label>
                <span className="kind">
                  {parameter.in}
                  {required && <b> required</b>}
                </span>
              </th>
              <td>
                {schema.type === "boolean" ? (
                  <select {...field}>
                    <option value="">not sent</option>
                    <option>true</option>
                    <option>false</option>
                  </select>
                ) : (
                  <span className="with-button">
                    <input
                      {...field}
                      type="text"
                      required={required}
                      autoComplete="off"
                      spellCheck={false}
                      inputMode={schema.type === "integer" ? "numeric" : undefined}
                      placeholder={schema.default === undefined ? "" : String(schema.default)}
                    />
                    {name === "Idempotency-Key" && (
                      <button type="button" className="quiet" onClick={() => set(name, freshKey())}>
                        New key
                      </button>
                    )}
                  </span>
                )}
                <p id={`${id}-about`}>
                  <Text>{description}</Text> {type !== "string" && type !== "boolean" && `${capital(type)}${limits && `, ${limits}`}.`}
                </p>
              </td>
            </tr>
          );
        })}
      </tbody>
    </table>
  );
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

function Body({ call, value, set, example, choose }) {
  const id = useId();
  return (
    <div className="body">
      <div className="head">
        <label htmlFor={id}>Body</label>
        {call.examples.map(({ name, summary }, at) => (
          <button key={name} type="button" className="quiet" aria-pressed={at === example} onClick={() => choose(at)}>
            {summary}
          </button>
        ))}
      </div>
      <textarea
        id={id}
        value={value}
        rows={Math.min(14, Math.max(5, value.split("\n").length + 1))}
        spellCheck={false}
        autoComplete="off"
        onChange={(event) => set("body", event.target.value)}
        aria-describedby={`${id}-fault`}
      />
      <p id={`${id}-fault`} className="fault">
        {parsedOrUndefined(value) === undefined && "This is not JSON; the gateway will say where."}
      </p>
    </div>
  );
}

function Members({ members, label, title, requires }) {
  return (
    <div className="scrolls" role="region" aria-label={label} tabIndex={0}>
      <table>
        {title && <caption>{title}</caption>}
        <thead>
          <tr>
            <th scope="col">Member</th>
            <th scope="col">Type</th>
            <th scope="col">Meaning</th>
          </tr>
        </thead>
        <tbody>
          {members.map(({ name, required, type, limits, values, description }) => (
            <tr key={name}>
              <th scope="row">
                <code>{name}</code>
                {requires && required && <b className="kind"> required</b>}
              </th>
              <td className="type">
                {values ? values.map((value, at) => <span key={value}>{at > 0 && " · "}<code>{value}</code></span>) : type}
                {limits && <span className="kind">{limits}</span>}
              </td>
              <td>
                <Text>{description}</Text>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Samples({ of, request, token, language, setLanguage, showToken, setShowToken }) {
  const shown = LANGUAGES.find((each) => each.id === language);
  const text = shown.write({ ...request, token });
  return (
    <Panel
      label={`Request as code: ${of}`}
      tabs={LANGUAGES}
      chosen={language}
      choose={setLanguage}
      text={text}
      className="sample"
      foot={
        <label className="check">
          <input type="checkbox" checked={showToken} onChange={(event) => setShowToken(event.target.checked)} />
          {showToken ? "The token is in the code" : "The token is read from the variable TOKEN"}
        </label>
      }
    >
      {highlight(text)}
    </Panel>
  );
}

const PARTS = [
  { id: "body", name: "Body" },
  { id: "headers", name: "Headers" },
];

function Answer({ of, answer, example }) {
  const [part, setPart] = useState("body");
  const known = answer?.status !== undefined;
  const text = known ? answer.text : JSON.stringify(example.example, null, 2);
  const headers = known ? answer.headers.map(([name, value]) => `${name}: ${value}`).join("\n") : "";
  return (
    <Panel
      label={`Answer: ${of}`}
      className="answer"
      tabs={known ? PARTS : []}
      chosen={known ? part : undefined}
      choose={setPart}
      text={part === "headers" && known ? headers : text}
      head={
        <p className="status" role="status">
          {answer?.failure ?? (answer?.sending ? "Sending …" : known ? <Outcome answer={answer} /> : `Example of an answer: ${example.status} ${example.description}`)}
        </p>
      }
    >
      {part === "headers" && known
        ? answer.headers.map(([name, value]) => (
            <span key={name}>
              <span className="code-name">{name}</span>
              {`: ${value}\n`}
            </span>
          ))
        : text
          ? highlight(text)
          : "(no body)"}
    </Panel>
  );
}

function Outcome({ answer }) {
  const { status, milliseconds, code, headers } = answer;
  const replayed = headers.some(([name]) => name === "idempotent-replayed");
  return (
    <>
      <b className={status < 400 ? "good" : "bad"}>{status}</b> in {milliseconds} ms
      {replayed && ", replayed: recorded before under this key"}
      {code && (
        <>
          {" · "}
          <a href={`problems/${code}`} target="_blank" rel="noreferrer">
            {code}
          </a>
        </>
      )}
    </>
  );
}

/** A framed text with tabs (WAI-ARIA: arrow keys move between them) and a button that copies it. */
function Panel({ label, tabs, chosen, choose, text, head, foot, className, children }) {
  const id = useId();
  const content = useRef(null);
  const [copied, setCopied] = useState("");

  async function copyText() {
    setCopied((await copy(content.current)) ? "Copied" : "Selected");
    setTimeout(() => setCopied(""), 1500);
  }

  function move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const at = tabs.findIndex((each) => each.id === chosen);
    const next = tabs[(at + step + tabs.length) % tabs.length];
    choose(next.id);
    document.getElementById(`${id}${next.id}`).focus();
  }

  return (
    <figure className={`panel ${className}`} aria-label={label}>
      {head}
      <div className="head">
        <div role={tabs.length ? "tablist" : undefined} aria-label={tabs.length ? label : undefined} className="tabs" onKeyDown={move}>
          {tabs.map((tab) => (
            <button
              key={tab.id}
              id={`${id}${tab.id}`}
              type="button"
              role="tab"
              aria-selected={tab.id === chosen}
              aria-controls={`${id}content`}
              tabIndex={tab.id === chosen ? 0 : -1}
              onClick={() => choose(tab.id)}
            >
              {tab.name}
            </button>
          ))}
        </div>
        <button type="button" className="quiet copy" onClick={copyText} disabled={!text}>
          {copied || "Copy"}
        </button>
      </div>
      <pre
        id={`${id}content`}
        tabIndex={0}
        role={tabs.length ? "tabpanel" : "region"}
        aria-label={tabs.length ? undefined : label}
        aria-labelledby={tabs.length ? `${id}${chosen}` : undefined}
      >
        <code ref={content}>{children}</code>
      </pre>
      {foot}
    </figure>
  );
}

function Statuses({ responses, calls }) {
  return (
    <section className="call" id="statuses" aria-labelledby="statuses-title">
      <h2 id="statuses-title">Statuses</h2>
      <p>
        Of all three calls. A refusal is one JSON object with <code>error</code>, the code, and <code>message</code>. It never
        repeats what was sent.
      </p>
      <div className="scrolls" role="region" aria-label="Table of statuses" tabIndex={0}>
        <table className="statuses">
          <thead>
            <tr>
              <th scope="col">Status</th>
              <th scope="col">Code</th>
              <th scope="col">When</th>
              <th scope="col">Recorded</th>
              <th scope="col">What to do</th>
            </tr>
          </thead>
          <tbody>
            {responses.map((response) => (
              <Status key={response.status} response={response} all={calls.length} />
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

function Status({ response, all }) {
  const refusal = refusals.find((each) => each.status === response.status);
  const recorded = refusal ? (refusal.recorded ?? response.recorded) : response.status === 201 ? "yes" : "no";
  const descriptions = [...response.descriptions];
  return (
    <tr>
      <th scope="row">{response.status}</th>
      <td>
        {refusal
          ? refusal.codes.map((code) => (
              <a key={code} href={`problems/${code}`}>
                <code>{code}</code>
              </a>
            ))
          : "–"}
      </td>
      <td>
        {descriptions.map(([description, calls]) => (
          <span key={description} className="when">
            {calls.length < all && <Methods calls={calls} />}
            <Text>{description}</Text>
          </span>
        ))}
      </td>
      <td>{recorded}</td>
      <td>{refusal ? <Text>{refusal.remedy}</Text> : "–"}</td>
    </tr>
  );
}

function Methods({ calls }) {
  return [...new Set(calls.map((each) => each.method))].map((name) => <Method key={name} name={name} />);
}

const Method = ({ name }) => <span className={`method ${name.toLowerCase()}`}>{name}</span>;

/** A text of the description, with `code` between backquotes. */
function Text({ children }) {
  return children.split("`").map((part, at) => (at % 2 ? <code key={at}>{part}</code> : part));
}

createRoot(document.querySelector("#rest")).render(
  <StrictMode>
    <RestPage />
  </StrictMode>,
);

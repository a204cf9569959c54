// The strip below the bar in which a token is entered, and the element in the bar that shows that there is one.

import { development } from "./development.js";
import { keepToken, tryToken, whenTokenChanges } from "./token.js";

const strip = document.querySelector("#authorize");
const signedIn = document.querySelector("#signed-in");

/** Show the strip and focus its input. */
export function askForToken() {
  strip.hidden = false;
  strip.querySelector("input").focus();
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const refusal = element("p", { className: "said", role: "alert" });

async function authorize(token) {
  refusal.textContent = "";
  strip.inert = true;
  const reason = await tryToken(token.trim().replace(/^bearer +/i, ""));
  strip.inert = false;
  if (reason) {
    refusal.textContent = reason;
    askForToken();
  }
}

const choices = development.map(({ token, brand, patient }) =>
  element(
    "button",
    { type: "button", className: "choice", onclick: () => authorize(token), title: `Its patient is ${patient}` },
    element("b", { textContent: token }),
    element("span", { textContent: ` brand ${brand}` }),
  ),
);

// Not a password field: a browser would offer to store the token on disk. The style hides what is typed.
const box = element("input", {
  type: "text",
  className: "secret",
  autocomplete: "off",
  autocapitalize: "off",
  spellcheck: false,
  placeholder: "Bearer token",
  ariaLabel: "Bearer token",
  onkeydown: (event) => event.key === "Enter" && authorize(box.value),
});

strip.append(
  element(
    "p",
    {},
    element("b", { textContent: "Authorize" }),
    element("span", {
      textContent: development.length
        ? " Development mode: choose one of these tokens."
        : " Every call needs a bearer token. It stays in the memory of this page until you close or reload it.",
    }),
  ),
  element(
    "div",
    { className: "ways" },
    ...choices,
    element(
      "div",
      { className: "typed" },
      box,
      element("button", { type: "button", className: "button", textContent: "Authorize", onclick: () => authorize(box.value) }),
    ),
  ),
  refusal,
);

// The start page shows the strip only when the user asks for something that needs a token.
let started = document.body.classList.contains("start");

whenTokenChanges((token) => {
  box.value = "";
  strip.hidden = Boolean(token) || started;
  started = false;
  const known = development.find((each) => each.token === token);
  signedIn.replaceChildren(
    ...(token
      ? [
          element("span", { className: "who", textContent: known ? `${known.token} · brand ${known.brand}` : "Authorized" }),
          element("button", { type: "button", className: "quiet", textContent: "Forget token", onclick: () => keepToken("") }),
        ]
      : [element("button", { type: "button", className: "quiet", textContent: "Authorize", onclick: askForToken })]),
  );
});

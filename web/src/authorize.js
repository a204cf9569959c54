// The strip below the bar that asks for a token, and the place in the bar that says there is one.

import { development } from "./development.js";
import { keepToken, tryToken, whenTokenChanges } from "./token.js";

const strip = document.querySelector("#authorize");
const place = document.querySelector("#signed-in");

/** Ask for a token, and put the cursor there. */
export function askForToken() {
  strip.hidden = false;
  strip.querySelector("input").focus();
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const said = element("p", { className: "said", role: "alert" });

async function authorize(token) {
  said.textContent = "";
  strip.inert = true;
  const refused = await tryToken(token.trim().replace(/^bearer +/i, ""));
  strip.inert = false;
  if (refused) {
    said.textContent = refused;
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

// A text box, not one for passwords: a browser would offer to write those to disk. The style hides what is typed.
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
        ? " This is development mode: be one of these with a click."
        : " Every call needs a bearer token. It stays in this page's memory, and is gone when you close or reload it.",
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
  said,
);

whenTokenChanges((token) => {
  box.value = "";
  strip.hidden = Boolean(token);
  const known = development.find((each) => each.token === token);
  place.replaceChildren(
    ...(token
      ? [
          element("span", { className: "who", textContent: known ? `${known.token} · brand ${known.brand}` : "Authorized" }),
          element("button", { type: "button", className: "quiet", textContent: "Forget token", onclick: () => keepToken("") }),
        ]
      : [element("button", { type: "button", className: "quiet", textContent: "Authorize", onclick: askForToken })]),
  );
});

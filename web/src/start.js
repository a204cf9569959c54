import { askForToken } from "./authorize.js";
import { base } from "./base.js";
import { copy } from "./clipboard.js";
import { development } from "./development.js";
import { loadSdl } from "./sdl.js";
import { currentToken, whenTokenChanges } from "./token.js";

const [caller] = development;
const patient = caller?.patient ?? "PATIENT_ID";
const brand = caller?.brand ?? "BRAND";

document.querySelector("#curl").textContent = `curl \\
  ${base}/v1/patients/${patient}/encounters \\
  -H ${caller ? `'Authorization: Bearer ${caller.token}'` : '"Authorization: Bearer $TOKEN"'} \\
  -H 'Content-Type: application/json' \\
  -d '{
    "brand_id": "${brand}",
    "encounter_type": "telehealth",
    "notes": "Slept well."
  }'`;

document.querySelector("#mutation").textContent = `mutation {
  recordEncounter(
    patientId: "${patient}"
    input: {
      brandId: "${brand}"
      encounterType: TELEHEALTH
      notes: "Slept well."
    }
  ) {
    __typename
    ... on EncounterRecorded { encounter { id status } }
    ... on Problem { code message recorded }
  }
}`;

// The paths that a client requests.
for (const path of document.querySelectorAll(".doors code")) path.prepend(new URL(base).pathname.replace(/\/$/, ""));

for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    const copied = await copy(document.getElementById(button.dataset.copies));
    button.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

const version = document.querySelector("meta[name=version]").content;
const shownVersion = document.querySelector("#version");
shownVersion.hidden = !version;
shownVersion.textContent = `Version ${version}`;

// The schema is data of a call: it needs a token, and its scopes decide what may be read.

const dialog = document.querySelector("#sdl");
const sdl = dialog.querySelector("code");
const outcome = dialog.querySelector("[role=status]");
const save = document.querySelector("#save-sdl");
let wanted = false;

async function showSchema() {
  wanted = false;
  dialog.showModal();
  sdl.textContent = "";
  outcome.textContent = "Loading …";
  try {
    sdl.textContent = await loadSdl(currentToken());
    outcome.textContent = "";
    URL.revokeObjectURL(save.href);
    save.href = URL.createObjectURL(new Blob([sdl.textContent], { type: "text/plain" }));
  } catch (error) {
    outcome.textContent = error.message;
  }
}

document.querySelector("#schema").addEventListener("click", () => {
  if (currentToken()) showSchema();
  else {
    wanted = true;
    askForToken();
  }
});
document.querySelector("#close-sdl").addEventListener("click", () => dialog.close());
document.querySelector("#copy-sdl").addEventListener("click", async () => {
  outcome.textContent = (await copy(sdl)) ? "Copied." : "Selected: press Ctrl+C.";
});
whenTokenChanges((token) => token && wanted && showSchema());

import { copy } from "./clipboard.js";
import { development } from "./development.js";

const [who] = development;
const patient = who?.patient ?? "PATIENT_ID";
const brand = who?.brand ?? "BRAND";

document.querySelector("#curl").textContent = `curl \\
  ${location.origin}/v1/patients/${patient}/encounters \\
  -H ${who ? `'Authorization: Bearer ${who.token}'` : '"Authorization: Bearer $TOKEN"'} \\
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

for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    const copied = await copy(document.getElementById(button.dataset.copies));
    button.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

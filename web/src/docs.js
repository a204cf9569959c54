import SwaggerUI from "swagger-ui-dist/swagger-ui-es-bundle.js";
import "swagger-ui-dist/swagger-ui.css";
import "./docs.css";
import "./authorize.js";
import { development } from "./development.js";
import { whenTokenChanges } from "./token.js";

/** Fill in the patient and brand of a development token, where nobody has written others. */
function fillIn({ brand, patient }) {
  const patients = [undefined, ...development.map((each) => each.patient)];
  const { paths } = ui.specSelectors.specJson().toJS();
  for (const [path, { parameters = [], ...operations }] of Object.entries(paths)) {
    const place = parameters.findIndex((each) => each.name === "patient_id");
    const inPath = ui.specSelectors.specJson().getIn(["paths", path, "parameters", place]);
    if (place < 0) continue;
    for (const [method, { requestBody }] of Object.entries(operations)) {
      const kept = ui.getState().getIn(["spec", "meta", "paths", path, method, "parameters"]);
      const there = kept?.find((_, name) => name.startsWith("path.patient_id"))?.get("value");
      if (patients.includes(there)) ui.specActions.changeParamByIdentity([path, method], inPath, patient, false);
      if (requestBody) fillInBody(path, method, requestBody.content["application/json"].examples.least.value, brand);
    }
  }
}

function fillInBody(path, method, least, brand) {
  const written = (brand_id) => JSON.stringify({ ...least, brand_id }, null, 2);
  const there = ui.oas3Selectors.requestBodyValue(path, method);
  if (there === undefined || development.some((each) => written(each.brand) === there))
    ui.oas3Actions.setRequestBodyValue({ value: written(brand), pathMethod: [path, method] });
}

const ui = SwaggerUI({
  url: "/openapi.json",
  domNode: document.querySelector("#swagger"),
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  defaultModelExpandDepth: 3,
  tryItOutEnabled: true,
  persistAuthorization: false,
  validatorUrl: null,
  onComplete() {
    const operations = Object.values(ui.specSelectors.specJson().toJS().paths).map((path) => path.post);
    const { tags = ["default"] } = operations.find((each) => each?.operationId === "recordEncounter");
    ui.layoutActions.show(["operations", tags[0], "recordEncounter"], true);
    let known = "";
    whenTokenChanges((token) => {
      if (token) ui.preauthorizeApiKey("bearer", token);
      else if (known) ui.authActions.logout(["bearer"]);
      known = token;
      const who = development.find((each) => each.token === token);
      if (who) fillIn(who);
    });
  },
});

const dark = matchMedia("(prefers-color-scheme: dark)");
const followSystem = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", followSystem);
followSystem();

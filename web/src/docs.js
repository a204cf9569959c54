import SwaggerUI from "swagger-ui-dist/swagger-ui-es-bundle.js";
import "swagger-ui-dist/swagger-ui.css";
import "./docs.css";
import "./authorize.js";
import { whenTokenChanges } from "./token.js";

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
    });
  },
});

const dark = matchMedia("(prefers-color-scheme: dark)");
const followSystem = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", followSystem);
followSystem();

// Node.js needs the extension of each imported file.
export default { input: "openapi.json", output: { path: "hey-api", importFileExtension: ".js" } };

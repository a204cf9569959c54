/** The development tokens: `[{ token, brand, patient }]`, empty unless the gateway is in development mode. */
export const development = JSON.parse(document.querySelector("meta[name=development]").content);

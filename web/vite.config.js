import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

export default defineConfig({
  plugins: [react()],
  build: {
    // The newest browsers of 2023: what GraphiQL itself asks for.
    target: "es2022",
    modulePreload: { polyfill: false },
    // The editor is one large piece, loaded once and kept.
    chunkSizeWarningLimit: 10_000,
    rolldownOptions: { input: ["index.html", "explorer.html", "docs.html", "board.html"] },
    license: { fileName: "licences.md" },
  },
  server: {
    // `npm run dev` beside a gateway on its usual port.
    proxy: {
      "/graphql": { target: "http://127.0.0.1:8000", ws: true },
      "/openapi.json": "http://127.0.0.1:8000",
      "/v1": "http://127.0.0.1:8000",
    },
  },
});

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

const COMPRESSED_FROM_BYTES = 1024;

/** Write a copy in Brotli and one in gzip beside each asset that becomes smaller; gateway/pages.py serves them. */
function compressedCopies() {
  return {
    name: "compressed-copies",
    apply: "build",
    writeBundle({ dir }) {
      const folder = join(dir, "assets");
      for (const name of readdirSync(folder).filter((each) => /\.(css|js|svg|ttf)$/.test(each))) {
        const content = readFileSync(join(folder, name));
        if (content.length <= COMPRESSED_FROM_BYTES) continue;
        // The highest quality, 11, makes the build 10 s longer and the files a twelfth smaller.
        const params = { [constants.BROTLI_PARAM_QUALITY]: 9, [constants.BROTLI_PARAM_SIZE_HINT]: content.length };
        writeFileSync(join(folder, `${name}.br`), brotliCompressSync(content, { params }));
        writeFileSync(join(folder, `${name}.gz`), gzipSync(content, { level: 9 }));
      }
    },
  };
}

export default defineConfig({
  // Relative URLs: a proxy may serve the pages below a path.
  base: "./",
  plugins: [react(), compressedCopies()],
  build: {
    // GraphiQL requires the syntax of the browsers of 2023.
    target: "es2022",
    modulePreload: { polyfill: false },
    // Monaco, the editor, is one large file, which browsers cache permanently.
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

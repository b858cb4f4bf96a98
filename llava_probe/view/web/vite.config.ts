import { defineConfig } from "vite";

// One classic script without imports: it is put into pages, cells and the app as text.
export default defineConfig({
  esbuild: { legalComments: "inline" },
  build: {
    outDir: "../page",
    emptyOutDir: false,
    copyPublicDir: false,
    target: "es2022",
    cssTarget: ["chrome123", "firefox120", "safari17.5"],
    lib: { entry: "src/main.tsx", formats: ["iife"], name: "llavaProbeComponent", fileName: () => "component.js" },
    rollupOptions: { output: { banner: "/*! llava_probe page component. Contains Preact, MIT licence: PREACT_LICENSE. */" } },
  },
});

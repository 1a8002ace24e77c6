/** Starts the API reference. */
import "./docs.css";

declare const SwaggerUIBundle: (options: Readonly<Record<string, unknown>>) => void;

const dark = matchMedia("(prefers-color-scheme: dark)");
const chosen = localStorage.getItem("lotus-theme") ?? "auto";
document.documentElement.classList.toggle("dark-mode", chosen === "dark" || (chosen === "auto" && dark.matches));

SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  validatorUrl: null,
  deepLinking: false,
  tryItOutEnabled: true,
});

/** Starts the API reference. */
import "./docs.css";

declare const SwaggerUIBundle: (options: Readonly<Record<string, unknown>>) => void;

const dark = matchMedia("(prefers-color-scheme: dark)");
const chosen = localStorage.getItem("lotus-theme") ?? "auto";
document.documentElement.classList.toggle("dark-mode", chosen === "dark" || (chosen === "auto" && dark.matches));

SwaggerUIBundle({ url: "/openapi.json", dom_id: "#docs", validatorUrl: null, tryItOutEnabled: true });

// The label of the server list has no text for screen readers, and Swagger UI draws the list again after each change.
new MutationObserver(() => {
  const servers = document.querySelector("select#servers:not([aria-label])");
  servers?.setAttribute("aria-label", "Server");
}).observe(document.body, { childList: true, subtree: true });

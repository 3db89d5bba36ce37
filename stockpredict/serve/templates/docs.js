// The API page: Swagger UI over the schema of this server. Nothing is loaded from another host.
"use strict";

// The address of an error, such as /docs#unknown-ticker, leads to a row below the operations.
const row = location.hash.length > 1 && document.getElementById(location.hash.slice(1));

// Swagger UI has a class for the dark scheme; it follows the reader's choice.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

window.swagger = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  layout: "BaseLayout",
  presets: [SwaggerUIBundle.presets.apis],
  deepLinking: !row,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  defaultModelRendering: "example",
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null,
  onComplete: () => row && row.scrollIntoView(),
});

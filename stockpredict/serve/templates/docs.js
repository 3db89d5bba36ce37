// The API page: Swagger UI over the schema of this server. Nothing is loaded from another host.
"use strict";

window.swagger = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  layout: "BaseLayout",
  presets: [SwaggerUIBundle.presets.apis],
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  defaultModelRendering: "example",
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null,
});

"""The chat console: one page, served by the API, that speaks only the public API and the gateway."""

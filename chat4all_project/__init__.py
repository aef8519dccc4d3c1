"""Assembly: settings, URLs and the entry points of each process. Nothing imports it."""

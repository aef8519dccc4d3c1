"""REST: parse, call one service, answer. Errors become problem JSON in `core.problems`."""

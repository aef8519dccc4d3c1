"""The same work on other systems, from their packages, beside ours in the same run."""

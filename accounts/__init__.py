"""Who somebody is: workspaces, users, tokens and their keys, limits on guessing, the audit."""

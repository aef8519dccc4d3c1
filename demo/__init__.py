"""The local profile as one command: a supervisor, real dialogues, and an honest count of what arrived."""

"""What every package stands on: errors, ids, the clock, logging. No models, no I/O."""

"""The commands that need no torch: `var-run`, and what the commands share."""

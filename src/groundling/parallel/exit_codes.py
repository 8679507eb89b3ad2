"""What a process that trains with others says by its exit code. Without imports, as every failing command reads it."""

START_AGAIN = 75
"""All processes must start again, with smaller parts."""
LOST_ANOTHER = 76
"""Another process is gone. It says why, or whoever started it."""

"""One run: its folder, record, lock and checkpoints, and how it is started, resumed and loaded."""

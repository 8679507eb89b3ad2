"""Whether a run survives being killed: processes that are, and two runs compared to the bit."""

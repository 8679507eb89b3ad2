"""What a run learned: diagnosis of its curves, n-gram baselines, leakage, memorization, attention."""

"""Long campaigns with a seed; CI runs a stated sample of each."""

"""Several processes train one model: how they find each other, what each holds, and what they decide together."""

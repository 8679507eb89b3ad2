"""WEIGHTS -> ANYONE WHO ASKS: the API that OpenAI's clients speak."""

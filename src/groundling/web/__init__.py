"""WEIGHTS -> ANYONE WHO ASKS: the API that OpenAI's clients speak, and the studio, a page for people."""

"""A run on one page: what its files tell, its curves, and the page itself."""

"""The studio: a page in a browser on which runs are started, watched, tried out and looked into."""

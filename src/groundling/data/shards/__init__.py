"""A large text in shards: cut, then read, counted and tokenized by several processes, with the result of one."""

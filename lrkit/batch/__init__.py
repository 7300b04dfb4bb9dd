"""Many questions: the lines of files answered in shards, by one process or on Ray, each exactly once."""

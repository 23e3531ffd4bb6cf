"""Tar archives of audio or features (shards): written, indexed, and read from end to end."""
